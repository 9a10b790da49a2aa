"""HeteroGraph: what it refuses, how rows and edges are numbered, and that it is a static pytree."""

import dataclasses

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from h2g.errors import InputError
from h2g.graph import from_jraph
from h2g.graph import from_networkx
from h2g.graph import from_pyg
from h2g.graph import HeteroGraph
from h2g.graph import hgt_sample
from h2g.graph import neighbor_sample
from h2g.graph import to_jraph
from h2g.graph import to_networkx
from h2g.graph import to_pyg
from h2g.graph.encodings import degree_encoding
from h2g.graph.padding import pad
from tests.models.graphs import random_graph

NODES = {"paper": {"labels": np.array([0, 1, -1, 1])}, "author": {"features": np.ones((3, 2))}}
EDGES = {("author", "writes", "paper"): np.array([[2, 0, 0], [3, 1, 0]])}


def build(*, nodes=None, edges=None, target="paper", **options):
  return HeteroGraph.from_arrays(
    nodes=NODES | (nodes or {}), edges=EDGES if edges is None else edges, target=target, **options
  )


def writes(senders, receivers, *features, name=("author", "writes", "paper")):
  return {"edges": {name: (np.array(senders), np.array(receivers), *features)}}


@pytest.mark.parametrize(
  ("given", "message"),
  [
    (
      writes([0, 3], [0, 0]),
      r"senders of \('author', 'writes', 'paper'\): edge 1 has index 3, "
      r"outside the 3 nodes of type 'author' \(0\.\.2\)",
    ),
    (writes([0, 1], [0, -1]), r"receivers of .*: edge 1 has index -1, outside the 4 nodes"),
    (writes([0, 1], [0]), "2 senders and 1 receivers"),
    (writes([0.5], [0]), r"senders of .* are float64\[1\]: give integers"),
    (writes([0], [0], np.ones((2, 1))), "features of edge type .* have 2 rows, 1 are expected"),
    (writes([0], [0], np.array([[1.0, np.inf]])), "row 0, column 1 is inf"),
    (writes([0], [0], name=("author", "writes", "book")), "names node type 'book'; the gr"),
    (writes([0], [0], name=("author", "paper")), r"must be \(source, relation, target\)"),
    ({"edges": {("author", "writes", "paper"): np.zeros((3, 4, 5), int)}}, r"integers \[E\]"),
    ({"edges": {("author", "writes", "paper"): np.zeros((4, 2), int)}}, r"give \[2, E\]"),
    # A third row, or edges given as rows: neither is taken for features.
    ({"edges": {("author", "writes", "paper"): np.zeros((3, 2), int)}}, r"int64\[3, 2\]: give"),
    ({"edges": {("author", "writes", "paper"): 3}}, r"edges of .* are 3: give \[2, E\]"),
    ({"edges": {("author", "writes", "paper"): None}}, r"of .* are None: give \[2"),
    (
      {"nodes": {"paper": {"labels": np.array([0, 7])}}, "num_classes": 3},
      r"label 7 of 'paper' node 1 is outside the classes 0\.\.2",
    ),
    ({"nodes": {"paper": {"labels": np.array([0, -2])}}}, "label -2 of 'paper' node 1 is out"),
    (
      {"nodes": {"paper": {"labels": np.array([0, 2**32])}}, "num_classes": 2},
      "label 4294967296 of 'paper' node 1 does not fit into 32 bits",
    ),
    ({"nodes": {"paper": {"labels": np.zeros(4)}}}, r"labels of .* are float64\[4\]: give in"),
    (
      {"nodes": {"paper": {"features": np.array([[0.0], [np.nan]])}}},
      "node type 'paper' are not finite: row 1, column 0 is nan",
    ),
    ({"nodes": {"paper": {"features": np.array([["a"]])}}}, r"give float \[rows, F\]"),
    ({"nodes": {"paper": {"features": np.ones((2, 1)), "num_nodes": 3}}}, "2 rows, 3 are exp"),
    ({"nodes": {"paper": {"x": np.ones((2, 1))}}}, r"unknown fields \['x'\]: use features"),
    ({"nodes": {"paper": {"features": np.array([[0.0], [1e300]])}}}, "row 1, column 0 is"),
    ({"nodes": {"paper": {"num_nodes": -1}}}, "num_nodes of node type 'paper' is -1: give"),
    ({"nodes": {"paper": {"num_nodes": 2.5}}}, r"num_nodes of node type 'paper' is 2\.5"),
    ({"nodes": {"paper": {}}}, "neither features nor labels: give num_nodes"),
    ({"target": "venue"}, "target 'venue' is no node type: the graph has paper, author"),
    ({"class_names": ("a", "b"), "num_classes": 3}, "2 class names for 3 classes"),
    ({"splits": {"train": np.ones(3, bool)}}, r"split 'train' is bool\[3\]: give bool\[4\]"),
    ({"splits": {"train": np.arange(4)}}, r"split 'train' is int64\[4\]: give bool\[4\]"),
  ],
)
def test_what_is_wrong_is_named_in_one_line(given, message):
  with pytest.raises(InputError, match=message) as error:
    build(**given)
  assert "\n" not in str(error.value)


@pytest.mark.smoke
def test_rows_are_numbered_type_after_type_and_messages_relation_after_relation():
  graph = random_graph()
  assert graph.node_offsets == (0, 13, 20)
  assert graph.rows("author") == (13, 20) and graph.target_rows == (0, 13)
  # author -writes-> paper: 7 rows; paper -cites-> and paper -retracted_by->: 13 each.
  assert graph.message_offsets == (0, 7, 20, 33)
  x = np.arange(20, dtype=np.float32)[:, None] * np.ones((1, 2), np.float32)
  rows = graph.message_rows(x)[:, 0]
  expected = np.concatenate([np.arange(13, 20), np.arange(13), np.arange(13)])
  np.testing.assert_array_equal(rows, expected)
  assert graph.schema.source_runs == (("author", 0, 1), ("paper", 1, 3))


def test_edge_sets_are_sorted_both_ways_and_keep_their_features():
  rng = np.random.default_rng(0)
  tails, heads = rng.integers(0, (3, 4), (20, 2)).T
  features = np.arange(20, dtype=np.float32)
  graph = build(**writes(tails, heads, features))
  edges = graph.edges["author", "writes", "paper"]
  order = np.argsort(heads, kind="stable")
  np.testing.assert_array_equal(edges.receivers, heads[order])
  np.testing.assert_array_equal(edges.senders, tails[order])
  np.testing.assert_array_equal(edges.features[:, 0], features[order])
  for row in range(4):
    assert (edges.receivers[edges.indptr[row] : edges.indptr[row + 1]] == row).all()
  for row in range(3):
    at = edges.sender_order[edges.sender_indptr[row] : edges.sender_indptr[row + 1]]
    np.testing.assert_array_equal(at, np.flatnonzero(edges.senders == row))


def by_definition(graph):
  """All edges, relation after relation: (message row, receiver row, number)."""
  found = []
  for start, name in zip(graph.message_offsets, graph.schema.edge_types):
    edges = graph.edges[name]
    for tail, head in zip(edges.senders.tolist(), edges.receivers.tolist()):
      found.append((start + tail, graph.rows(name[2])[0] + head, len(found)))
  return sorted(found, key=lambda edge: edge[1])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 60), st.integers(0, 5))
def test_incoming_equals_brute_force(seed, num_edges, surplus):
  graph = random_graph(seed, num_edges=num_edges).with_reverses()
  total = sum(len(edges.senders) for edges in graph.edges.values())
  index = graph.with_incoming(capacity=total + surplus).incoming
  expected = np.array(by_definition(graph), int).reshape(-1, 3).T
  for got, want in zip((index.senders, index.receivers, index.edge_ids), expected):
    assert len(got) == total + surplus
    np.testing.assert_array_equal(got[:total], want)
  counts = np.bincount(expected[1], minlength=20)
  np.testing.assert_array_equal(np.diff(index.indptr), counts)
  order = index.sender_order[:total]
  np.testing.assert_array_equal(order, np.argsort(expected[0], kind="stable"))
  counts = np.bincount(expected[0], minlength=graph.message_offsets[-1])
  np.testing.assert_array_equal(np.diff(index.sender_indptr), counts)
  with pytest.raises(ValueError, match="smaller than the number of edges"):
    graph.with_incoming(capacity=total - 1)


def test_shared_message_rows_are_the_node_rows():
  graph = random_graph().with_reverses()
  typed, shared = graph.with_incoming(), graph.with_incoming(typed=False)
  rows = np.arange(graph.node_offsets[-1])
  np.testing.assert_array_equal(shared.message_rows(rows), rows)
  np.testing.assert_array_equal(
    np.asarray(typed.message_rows(rows))[typed.incoming.senders], shared.incoming.senders
  )
  for name in ("indptr", "receivers", "edge_ids"):
    same = getattr(typed.incoming, name), getattr(shared.incoming, name)
    np.testing.assert_array_equal(*same)
  assert len(shared.incoming.sender_indptr) == len(rows) + 1
  with pytest.raises(InputError, match="cannot be told apart: build this graph by with_incoming"):
    _ = shared.message_offsets
  assert shared.with_self_loops().typed_messages and shared.with_incoming().typed_messages


def test_reverses_turn_every_edge_and_are_added_once():
  graph = random_graph()
  both = graph.with_reverses()
  assert both.schema.edge_types == (  # sorted by source type: as few runs as node types
    ("paper", "cites", "paper"),
    ("paper", "retracted_by", "author"),
    ("paper", "rev_writes", "author"),
    ("paper", "rev_cites", "paper"),
    ("author", "writes", "paper"),
    ("author", "rev_retracted_by", "paper"),
  )
  assert len(both.schema.source_runs) == 2
  for name in graph.schema.edge_types:
    there, back = graph.edges[name], both.edges[name[2], f"rev_{name[1]}", name[0]]
    order = np.lexsort((there.receivers, there.senders))
    again = np.lexsort((back.senders, back.receivers))
    np.testing.assert_array_equal(back.receivers[again], there.senders[order])
    np.testing.assert_array_equal(back.senders[again], there.receivers[order])
    if there.features is not None:
      turned = sorted(map(tuple, np.column_stack([back.senders, back.receivers, back.features])))
      straight = np.column_stack([there.receivers, there.senders, there.features])
      assert turned == sorted(map(tuple, straight))
  assert both.with_reverses().schema == both.schema
  assert ("paper", "rev_cites", "paper") not in graph.with_reverses(skip=("cites",)).edges


def test_self_loops_and_new_relations():
  graph = random_graph().with_self_loops()
  loop = graph.edges["author", "self", "author"]
  np.testing.assert_array_equal(loop.senders, np.arange(7))
  np.testing.assert_array_equal(loop.receivers, np.arange(7))
  graph = graph.with_edges(("author", "knows", "author"), [0, 1], [1, 0], [0.5, 0.25])
  assert graph.schema.edge_feature_dims == (2, 0, 0, 0, 0, 1)
  assert graph.edges["author", "knows", "author"].features.tolist() == [[0.25], [0.5]]
  with pytest.raises(InputError, match="edge 0 has index 7, outside the 7 nodes of type 'author'"):
    graph.with_edges(("author", "knows", "author"), [7], [0])


def test_padding_never_becomes_an_edge():
  graph = random_graph()
  padded = pad(graph, {}, dict.fromkeys(graph.edges, 64))
  for change in (HeteroGraph.with_reverses, HeteroGraph.with_self_loops):
    jax.tree.map(np.testing.assert_array_equal, change(padded), change(graph))
  loops = pad(graph, {"paper": 20}, {}).with_self_loops().edges["paper", "self", "paper"]
  np.testing.assert_array_equal(loops.receivers, np.arange(13))
  np.testing.assert_array_equal(np.diff(loops.indptr), np.arange(20) < 13)


def test_splits_and_defaults():
  graph = build(splits={"train": np.array([True, False, False, True])})
  assert graph.schema.num_classes == 2 and graph.schema.class_names == ("0", "1")
  assert graph.schema.feature_dims == (0, 2)
  assert graph.splits["train"].sum() == 2
  assert set(graph.with_splits({"all": np.ones(4, bool)}).splits) == {"all"}
  unlabelled = HeteroGraph.from_arrays(
    nodes={"n": {"num_nodes": 3}}, edges={("n", "r", "n"): np.zeros((2, 0))}, target="n"
  )
  assert (unlabelled.target_labels == -1).all() and unlabelled.schema.num_classes == 0


def test_summary_names_every_type_and_counts_the_labels():
  text = build(class_names=("red", "blue")).summary()
  assert "paper" in text and "author -> writes -> paper" in text
  assert "labels of paper: red 1, blue 2, unlabelled 1" in text


def test_the_graph_is_a_pytree_with_a_static_schema():
  graph = random_graph().with_incoming()
  leaves, tree = jax.tree.flatten(graph)
  assert all(isinstance(leaf, np.ndarray) for leaf in leaves)
  same = jax.tree.unflatten(tree, leaves)
  assert same.schema is graph.schema and list(same.edges) == list(graph.edges)
  traced = []

  @jax.jit
  def total(g):
    traced.append(g.schema)
    assert g.node_offsets == (0, 13, 20)  # sizes stay static under jit
    return sum(jnp.sum(nodes.ids) for nodes in g.nodes.values())

  assert total(graph) == total(random_graph(1).with_incoming()) == 13 * 12 // 2 + 7 * 6 // 2
  assert traced == [graph.schema]  # equal schemas and shapes share one program


def test_a_mapped_graph_is_the_same_graph_though_its_dictionaries_are_sorted():
  graph = random_graph().with_reverses().with_splits({"train": np.arange(13) < 5})
  mapped = jax.tree.map(lambda x: x, graph)
  assert list(mapped.nodes) != list(graph.nodes)
  for change in (
    lambda g: g.with_incoming(),
    lambda g: g.with_reverses(prefix="again_"),
    lambda g: g.with_self_loops(),
    lambda g: pad(g, {"paper": 16}, {}),
    lambda g: hgt_sample(g, [1, 2], [3], np.random.default_rng(0), max_neighbors=2),
    lambda g: neighbor_sample(g, [1, 2], [2], np.random.default_rng(0)),
    lambda g: from_pyg(to_pyg(g), num_classes=3),
    lambda g: from_networkx(to_networkx(g)),
    lambda g: from_jraph(to_jraph(g), g.schema),
  ):
    expected, got = change(graph), change(mapped)
    assert got.schema == expected.schema
    jax.tree.map(np.testing.assert_array_equal, got, expected)
  jax.tree.map(np.testing.assert_array_equal, degree_encoding(graph), degree_encoding(mapped))


def test_schemas_are_values():
  a, b = random_graph(0).schema, random_graph(1).schema
  assert a == b and hash(a) == hash(b) and len({a, b}) == 1
  assert random_graph().with_reverses().schema != a
  with pytest.raises(dataclasses.FrozenInstanceError):
    a.target = "author"


def test_replace_copies():
  graph = random_graph()
  changed = graph.replace(splits={"train": np.ones(13, bool)})
  assert not graph.splits and changed.nodes is graph.nodes
  with pytest.raises(TypeError):
    graph.replace(weights=1)
  with pytest.raises(dataclasses.FrozenInstanceError):
    graph.incoming = None
