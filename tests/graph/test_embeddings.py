"""Embeddings from edges: what walks visit, what skip-gram and TransE learn."""

import numpy as np
import pytest

from h2g.errors import InputError
from h2g.graph import embeddings
from h2g.graph import HeteroGraph
from tests.models.graphs import adjacency
from tests.models.graphs import random_graph

GRAPH = random_graph(3, num_edges=25).with_reverses()


def two_groups(groups: int = 2, size: int = 20):
  """Items in groups, each joined to the tags of its own group."""
  rng = np.random.default_rng(0)
  item, tag = np.repeat(np.arange(groups * size), 4), rng.integers(0, 5, groups * size * 4)
  return HeteroGraph.from_arrays(
    nodes={
      "item": {"num_nodes": groups * size + 1, "labels": np.arange(groups * size + 1) % 2},
      "tag": {"num_nodes": groups * 5},
    },
    edges={("item", "has", "tag"): (item, tag + item // size * 5)},
    target="item",
  )


def test_metapath_walks_follow_relations_and_all_edges_alike():
  paths = [(("paper", "rev_writes", "author"), ("author", "writes", "paper"))]
  walks = embeddings.metapath_walks(
    GRAPH, np.random.default_rng(0), paths=paths, walks=400, length=5
  )
  assert walks.shape == (13 * 400, 5) and (walks[:, 0] == np.tile(np.arange(13), 400)).all()
  writes = adjacency(GRAPH, [("author", "writes", "paper")])[:13, 13:]
  for at in range(4):
    a, b = walks[:, at], walks[:, at + 1]
    going = b >= 0
    pair = (a, b - 13) if at % 2 == 0 else (b, a - 13)
    assert (writes[pair[0][going], pair[1][going]] > 0).all()
    if at % 2 == 0:
      for paper in range(13):
        seen = going & (a == paper)
        assert seen.any() == (writes[paper].sum() > 0 and (a == paper).any())
        if seen.sum() > 300:
          share = np.bincount(b[seen] - 13, minlength=7) / seen.sum()
          np.testing.assert_allclose(share, writes[paper] / writes[paper].sum(), atol=0.12)
  ended = walks == -1
  assert (ended[:, 1:] >= ended[:, :-1]).all() and ended[12::13, 1:].all()  # paper 12 is alone


def test_node2vec_walks_have_their_second_order_weights():
  walks = embeddings.node2vec_walks(
    GRAPH, np.random.default_rng(0), p=0.5, q=2.0, walks=4000, length=3
  )
  joined = adjacency(GRAPH) + adjacency(GRAPH).T
  t, u, v = walks.T
  assert (joined[t, u] > 0).all() and (joined[u, v] > 0).all()
  weight = np.where(
    np.arange(20)[None] == np.arange(20)[:, None], 2.0, np.where(joined > 0, 1, 0.5)
  )
  busiest = np.argsort(np.bincount(t * 20 + u, minlength=400))[-8:]
  for code in busiest:
    a, b = divmod(int(code), 20)
    seen = (t == a) & (u == b)
    expected = joined[b] * weight[a]
    share = np.bincount(v[seen], minlength=20) / seen.sum()
    np.testing.assert_allclose(share, expected / expected.sum(), atol=0.06)


@pytest.mark.few(1)
@pytest.mark.parametrize("method", embeddings.METHODS)
def test_vectors_tell_groups_apart_and_are_the_same_every_time(method):
  graph = two_groups().with_reverses()
  found = embeddings.embed(graph, method, 8)
  assert {name: x.shape for name, x in found.items()} == {"item": (41, 8), "tag": (10, 8)}
  assert not found["item"][40].any()  # it has no edges
  x = found["item"][:40]
  x = x / np.linalg.norm(x, axis=1, keepdims=True)
  likeness = x @ x.T
  same = np.repeat([0, 1], 20)[:, None] == np.repeat([0, 1], 20)[None]
  off = ~np.eye(40, dtype=bool)
  assert likeness[same & off].mean() > likeness[~same].mean() + 0.3
  again = embeddings.embed(graph, method, 8)
  np.testing.assert_array_equal(again["item"], found["item"])


def test_transe_places_tails_at_head_plus_relation():
  graph = two_groups()
  found = embeddings.transe(graph, 8, steps=300)
  edges = graph.edges["item", "has", "tag"]
  x, y = found["item"][edges.senders], found["tag"]
  relation = (y[edges.receivers] - x).mean(0)
  distance = np.linalg.norm((x + relation)[:, None] - y[None], axis=-1)
  rank = (distance < distance[np.arange(len(x)), edges.receivers][:, None]).sum(1)
  assert rank.mean() < 2.5  # by chance 4.5
  np.testing.assert_allclose(np.linalg.norm(found["tag"], axis=1), 1, rtol=1e-4)


def test_what_cannot_be_embedded_is_said():
  with pytest.raises(InputError, match="unknown: choose from metapath2vec, node2vec, transe"):
    embeddings.embed(GRAPH, "word2vec", 4)
  with pytest.raises(InputError, match="of one length"):
    paths = [(("paper", "cites", "paper"),), (("paper", "cites", "paper"),) * 2]
    embeddings.metapath2vec(GRAPH, 4, paths=paths)
  bare = two_groups()
  with pytest.raises(InputError, match="add reverses"):
    embeddings.metapath2vec(bare, 4)
