"""Samples drawn inside a program: true of the parent, consistent, and distributed as the host's."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from h2g.errors import InputError
from h2g.graph import HeteroGraph
from h2g.graph.device_sampler import block_sizes
from h2g.graph.device_sampler import sample_neighbors
from h2g.graph.device_sampler import tightened
from h2g.graph.sampler import Sampler
from tests.graph.test_sampler import big_graph

DRAWS = 4000


def small_graph() -> HeteroGraph:
  """Few outcomes per draw, and a node that both hops can find, in two relations."""
  return HeteroGraph.from_arrays(
    nodes={"paper": {"features": np.eye(5)}, "author": {"num_nodes": 3}},
    edges={
      ("paper", "cites", "paper"): ([1, 2, 3, 0, 3, 4, 4], [0, 0, 0, 1, 1, 1, 2]),
      ("author", "writes", "paper"): ([0, 1, 2, 2], [0, 0, 0, 1]),
      ("paper", "by", "author"): ([0, 1, 3, 4], [0, 0, 0, 2]),
    },
    target="paper",
    num_classes=2,
    splits={"train": np.arange(5) < 3},
  )


def outcome(ids, edges) -> frozenset:
  """The sampled edges by parent ids."""
  found = []
  for name, part in edges.items():
    count = part.indptr[-1]
    tails, heads = ids[name[0]][part.senders[:count]], ids[name[2]][part.receivers[:count]]
    found += [(name[1], *pair) for pair in zip(tails.tolist(), heads.tolist())]
  assert len(set(found)) == len(found)
  return frozenset(found)


def test_device_and_host_draw_from_one_distribution():
  """Two-sample chi-squared over whole outcomes, that is, all edges of a two-hop sample together."""
  graph = small_graph()
  fanouts = {
    ("paper", "cites", "paper"): (2, 1),
    ("author", "writes", "paper"): (1, 1),
    ("paper", "by", "author"): (0, 2),
  }
  seeds = np.array([0, 2])
  draw = lambda graph, key: sample_neighbors(graph, jnp.asarray(seeds), fanouts, key)
  keys = jax.random.split(jax.random.key(0), DRAWS)
  drawn = jax.device_get(jax.jit(jax.vmap(draw, (None, 0)))(graph, keys))
  counts = {"device": Counter(), "host": Counter()}
  for i in range(DRAWS):
    one = jax.tree.map(lambda x, i=i: x[i], drawn)
    ids = {name: nodes.ids for name, nodes in one.nodes.items()}
    counts["device"][outcome(ids, one.edges)] += 1
  sampler, rng = Sampler(graph), np.random.default_rng(0)
  for _ in range(DRAWS):
    sample = sampler.neighbor(seeds, fanouts, rng)
    ids = {name: nodes.ids for name, nodes in sample.nodes.items()}
    counts["host"][outcome(ids, sample.edges)] += 1
  assert set(counts["device"]) == set(counts["host"]) and len(counts["host"]) > 20
  table = [[counts[where][key] for key in counts["host"]] for where in counts]
  assert scipy.stats.chi2_contingency(table).pvalue > 1e-3
  # The test can tell: draws with replacement, or all of one seed's edges alike, would be seen.
  skewed = [table[0], np.roll(table[1], 1)]
  assert scipy.stats.chi2_contingency(skewed).pvalue < 1e-9


@pytest.mark.smoke
def test_what_it_says_is_true_of_the_parent_and_the_index_is_the_hosts():
  graph = big_graph()
  fanouts = {name: (3, 2) for name in graph.schema.edge_types}
  fanouts["author", "writes", "paper"] = (1, 0)
  del fanouts["venue", "rev_in", "paper"]
  draw = jax.jit(lambda graph, seeds, key: sample_neighbors(graph, seeds, fanouts, key))
  for trial in range(5):
    seeds = np.random.default_rng(trial).permutation(60)[:5].astype(np.int32)
    seeds[3] = -1 if trial == 1 else seeds[3]
    sample = jax.device_get(draw(graph, seeds, jax.random.key(trial)))
    sizes = block_sizes(graph, 5, fanouts)
    assert {name: sum(rows) for name, rows in sizes.items()} == sample.num_nodes
    real = {name: np.flatnonzero(nodes.mask) for name, nodes in sample.nodes.items()}
    np.testing.assert_array_equal(sample.nodes["paper"].ids[:5], np.maximum(seeds, 0))
    for name, nodes in sample.nodes.items():
      at, parent = real[name], graph.nodes[name]
      assert len(set(nodes.ids[at].tolist())) == len(at)
      for field in ("features", "labels"):
        if getattr(parent, field) is not None:
          got, wanted = getattr(nodes, field), getattr(parent, field)[nodes.ids]
          np.testing.assert_array_equal(got[at], wanted[at])
      assert nodes.features is None or not nodes.features[~nodes.mask].any()
    train = graph.splits["train"][sample.nodes["paper"].ids] & sample.nodes["paper"].mask
    np.testing.assert_array_equal(sample.splits["train"], train)
    for name, edges in sample.edges.items():
      count, parent = int(edges.indptr[-1]), graph.edges[name]
      tails, heads = edges.senders[:count], edges.receivers[:count]
      assert sample.nodes[name[0]].mask[tails].all() and sample.nodes[name[2]].mask[heads].all()
      if edges.features is not None:  # they name the edge; a reverse has its edge's
        parent_ids = (parent.senders, parent.receivers)
        ids = (sample.nodes[name[0]].ids[tails], sample.nodes[name[2]].ids[heads])
        place = {int(label): at for at, label in enumerate(parent.features[:, 0])}
        at = [place[int(label)] for label in edges.features[:count, 0]]
        assert len(set(at)) == len(at)
        for found, wanted in zip(ids, parent_ids):
          np.testing.assert_array_equal(found, wanted[at])
      # Every node took what its hop allows.
      degree = np.diff(parent.indptr)[sample.nodes[name[2]].ids] * sample.nodes[name[2]].mask
      blocks = np.repeat(range(3), sizes[name[2]])
      allowed = np.array([*fanouts.get(name, (0, 0)), 0])[blocks]
      np.testing.assert_array_equal(np.diff(edges.indptr), np.minimum(degree, allowed))
      # The receiver's order, and the sender's, are those that the host sorts out.
      plain = {"senders": tails, "receivers": heads}
      assert (np.diff(plain["receivers"]) >= 0).all()
      np.testing.assert_array_equal(edges.sender_order[:count], np.argsort(tails, kind="stable"))
      width = np.bincount(tails, minlength=sample.num_nodes[name[0]])
      np.testing.assert_array_equal(np.diff(edges.sender_indptr), width)
    wanted = sample.with_incoming(capacity=len(sample.incoming.senders)).incoming
    jax.tree.map(np.testing.assert_array_equal, sample.incoming, wanted)


def test_the_largest_degree_bounds_a_fan_out_and_nothing_else():
  graph = big_graph()
  fanouts = tightened(graph, [-1, 2])
  for name, (first, second) in fanouts.items():
    most = np.diff(graph.edges[name].indptr).max()
    assert first == most and second == min(2, most)


def test_refusals():
  graph = big_graph()
  with pytest.raises(InputError, match=r"fan-out -1 of edge type .*: give 0 or more"):
    sample_neighbors(graph, jnp.arange(2), [-1], jax.random.key(0))
  with pytest.raises(InputError, match="unknown edge type 'cites'"):
    sample_neighbors(graph, jnp.arange(2), {"cites": [1]}, jax.random.key(0))
