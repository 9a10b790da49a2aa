"""Padding changes no real entry, is read by nobody, and comes in a handful of shapes."""

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import numpy as np
import pytest

from h2g.errors import InputError
from h2g.graph import padding
from tests.models.graphs import random_graph


def capacities(graph, extra_nodes, extra_edges):
  nodes = {name: count + extra_nodes for name, count in graph.num_nodes.items()}
  edges = {name: len(edges.senders) + extra_edges for name, edges in graph.edges.items()}
  return nodes, edges


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 7), st.integers(0, 9), st.integers(0, 100))
def test_real_entries_keep_their_places(extra_nodes, extra_edges, seed):
  graph = random_graph(seed).with_splits({"train": np.arange(13) < 5})
  padded = padding.pad(graph, *capacities(graph, extra_nodes, extra_edges))
  for name, nodes in graph.nodes.items():
    count = len(nodes.ids)
    got = padded.nodes[name]
    assert len(got.ids) == len(got.mask) == len(got.features) == count + extra_nodes
    np.testing.assert_array_equal(got.mask, np.arange(count + extra_nodes) < count)
    np.testing.assert_array_equal(got.features[:count], nodes.features)
    assert not got.features[count:].any() and not got.ids[count:].any()
  labels = padded.target_labels
  np.testing.assert_array_equal(labels[:13], graph.target_labels)
  assert (labels[13:] == -1).all() and not padded.splits["train"][13:].any()
  for name, edges in graph.edges.items():
    got, count = padded.edges[name], len(edges.senders)
    for field in ("senders", "receivers", "sender_order"):
      np.testing.assert_array_equal(getattr(got, field)[:count], getattr(edges, field))
      assert not getattr(got, field)[count:].any()
    for field, end in (("indptr", name[2]), ("sender_indptr", name[0])):
      array = getattr(got, field)
      assert len(array) == padded.num_nodes[end] + 1
      np.testing.assert_array_equal(array[: graph.num_nodes[end] + 1], getattr(edges, field))
      assert (array[graph.num_nodes[end] :] == count).all()
  assert len(padded.incoming.senders) == sum(len(e.senders) for e in padded.edges.values())
  assert padded.incoming.indptr[-1] == sum(len(e.senders) for e in graph.edges.values())


def test_incoming_lists_the_same_edges():
  graph = random_graph()
  padded = padding.pad(graph, *capacities(graph, 3, 5))
  got, features = [], []
  for g in (graph.with_incoming(), padded):
    count = int(g.incoming.indptr[-1])
    starts = np.array(g.message_offsets)
    relation = np.searchsorted(starts, g.incoming.senders[:count], side="right") - 1
    sender = g.incoming.senders[:count] - starts[relation]
    ends = np.array([g.rows(name[2])[0] for name in g.schema.edge_types])
    got.append(np.stack([relation, sender, g.incoming.receivers[:count] - ends[relation]]))
    widest = [
      np.zeros((len(e.senders), 2)) if e.features is None else e.features
      for e in (g.edges[name] for name in g.schema.edge_types)
    ]
    features.append(np.concatenate(widest)[g.incoming.edge_ids[:count]])
  np.testing.assert_array_equal(*got)
  np.testing.assert_array_equal(*features)


@pytest.mark.smoke
def test_padding_twice_is_padding_once_and_shapes_agree():
  graphs = [random_graph(seed, num_edges=20 + 5 * seed) for seed in range(8)]
  ladder = padding.bucket_ladder(graphs, max_buckets=3)
  assert 1 <= len(ladder) <= 3 and len(set(ladder)) == len(ladder)
  shapes = set()
  for graph in graphs:
    bucket = padding.choose_bucket(ladder, graph)
    once = padding.pad_to(graph, bucket)
    twice = padding.pad_to(padding.pad_to(graph, ladder[-1]), bucket)
    jax.tree.map(np.testing.assert_array_equal, once, twice)
    assert padding.size_of(once) == padding.size_of(graph)
    share = 1 - padding.size_of(graph).total / bucket.total
    assert abs(padding.padded_share(once) - share) < 1e-12
    shapes.add(tuple(x.shape for x in jax.tree.leaves(once)))
  assert padding.padded_share(graphs[0]) == 0
  assert len(shapes) <= 3


def test_rungs_are_nested_and_hold_the_samples():
  sizes = [padding.size_of(random_graph(0, num_edges=n)) for n in (5, 60, 20, 90)]
  ladder = padding.bucket_ladder(sizes, max_buckets=2, slack=0.0, multiple=1)
  # 5 and 20 edges make the first rung, 60 and 90 the second; "retracted_by" has none, and gets 1.
  assert [bucket.num_edges for bucket in ladder] == [(20, 20, 1), (90, 90, 1)]
  assert [bucket.num_nodes for bucket in ladder] == [(13, 7)] * 2
  assert ladder[1].holds(ladder[0]) and not ladder[0].holds(ladder[1])
  (only,) = padding.bucket_ladder(sizes, max_buckets=1, slack=0.25)
  assert only.num_edges == (120, 120, 8)  # 90 * 1.25 = 112.5, rounded up to a multiple of 8


def test_overflow_names_the_type():
  ladder = padding.bucket_ladder([random_graph(num_edges=8)], slack=0.0)
  with pytest.raises(InputError, match=r"'writes', 'paper'\) needs 40 places.* bucket has 8"):
    padding.choose_bucket(ladder, random_graph(num_edges=40))
  with pytest.raises(InputError, match="'paper': capacity 12 is smaller than the 13"):
    padding.pad(random_graph(), {"paper": 12}, {})
  with pytest.raises(InputError, match="unknown node type 'venue': the graph has 'paper', 'aut"):
    padding.pad(random_graph(), {"venue": 12}, {})
  with pytest.raises(InputError, match="at least one graph"):
    padding.bucket_ladder([])
  with pytest.raises(InputError, match=r"slack=-0\.5"):
    padding.bucket_ladder([random_graph()], slack=-0.5)
