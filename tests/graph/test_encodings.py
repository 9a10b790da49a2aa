"""Encodings: small cases by hand, definitions on random graphs, and nothing learnt from labels."""

import jax
import numpy as np
import pytest

from h2g import data
from h2g.errors import InputError
from h2g.graph import encodings
from h2g.graph import HeteroGraph
from h2g.graph.padding import pad
from tests.models.graphs import random_graph

ENCODINGS = {
  "degree": encodings.degree_encoding,
  "weighted": lambda graph: encodings.degree_encoding(graph, weighted=True),
  "spectral": lambda graph: encodings.spectral_encoding(graph, 3),
  "log": lambda graph: encodings.spectral_encoding(graph, 3, log_weights=True),
  "walk": lambda graph: encodings.random_walk_encoding(graph, 5),
  "laplacian": lambda graph: encodings.laplacian_encoding(graph, 4),
}


def path_of_three(weights=(1.0, 3.0)):
  """a - b - c, and d alone."""
  return HeteroGraph.from_arrays(
    nodes={"n": {"num_nodes": 4}},
    edges={("n", "r", "n"): ([0, 1], [1, 2], np.array(weights))},
    target="n",
  )


def adjacency(graph):
  """[N, N] edges between two nodes of the homogenised graph, either direction, in plain loops."""
  dense = np.zeros((graph.node_offsets[-1],) * 2)
  for (source, _, target), edges in graph.edges.items():
    for tail, head in zip(edges.senders, edges.receivers):
      u, v = graph.rows(source)[0] + tail, graph.rows(target)[0] + head
      dense[u, v] += 1
      dense[v, u] += 1
  return dense


def stacked(graph, encoded):
  return np.concatenate([encoded[name] for name in graph.schema.node_types])


@pytest.mark.smoke
@pytest.mark.parametrize("encode", ENCODINGS.values(), ids=ENCODINGS)
def test_labels_and_padding_play_no_part_and_calls_repeat(encode):
  graph = random_graph()  # no self loops: an identity has no singular vectors of its own
  expected = encode(graph)
  for name, encoded in expected.items():
    assert encoded.dtype == np.float32 and len(encoded) == graph.num_nodes[name]
  jax.tree.map(np.testing.assert_array_equal, encode(graph), expected)
  papers = graph.nodes["paper"]
  other = graph.replace(nodes=graph.nodes | {"paper": papers.replace(labels=papers.labels[::-1])})
  jax.tree.map(np.testing.assert_array_equal, encode(other), expected)
  padded = pad(graph, {"paper": 16, "author": 9}, dict.fromkeys(graph.edges, 64))
  for name, encoded in encode(padded).items():
    count = graph.num_nodes[name]
    np.testing.assert_allclose(np.abs(encoded[:count]), np.abs(expected[name]), atol=2e-5)
    assert not encoded[count:].any()


def test_degrees_by_hand():
  graph = path_of_three()
  # Edges arrive at b (weight 1) and c (weight 3) and leave a and b.
  plain = encodings.degree_encoding(graph)["n"]
  np.testing.assert_allclose(plain, np.log1p([[0, 1], [1, 1], [1, 0], [0, 0]]), rtol=1e-6)
  weighted = encodings.degree_encoding(graph, weighted=True)["n"]
  np.testing.assert_allclose(weighted, np.log1p([[0, 1], [1, 3], [3, 0], [0, 0]]), rtol=1e-6)


def test_spectral_encoding_rebuilds_each_relation():
  graph = random_graph()
  for log_weights in (False, True):
    encoded = encodings.spectral_encoding(graph, 99, log_weights=log_weights)
    edges = graph.edges["author", "writes", "paper"]
    dense = np.zeros((7, 13))
    weights = edges.features[:, 0].astype(float)
    if log_weights:
      weights = np.sign(weights) * np.log1p(np.abs(weights))
    np.add.at(dense, (edges.senders, edges.receivers), weights)
    # An author takes part in "writes" only; a paper's columns begin with it. U S V^T = A.
    sources = encoded["author"]
    rebuilt = sources @ encoded["paper"][:, : sources.shape[1]].T
    np.testing.assert_allclose(rebuilt, dense, atol=1e-5)
    largest = np.abs(sources).argmax(0)
    assert (sources[largest, np.arange(sources.shape[1])] > 0).all()


def test_large_relations_are_factored_from_their_edges(monkeypatch):
  rng = np.random.default_rng(0)
  # Blocks of different density: the singular values fall off.
  dense = rng.random((60, 45)) < np.kron(np.diag([0.9, 0.5, 0.25]), np.ones((20, 15)))
  graph = HeteroGraph.from_arrays(
    nodes={"a": {"num_nodes": 60}, "b": {"num_nodes": 45}},
    edges={("a", "r", "b"): np.nonzero(dense)},
    target="a",
  )
  exact = encodings.spectral_encoding(graph, 3)
  monkeypatch.setattr(encodings, "EXACT", 100)
  close = encodings.spectral_encoding(graph, 3)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), close, exact)
  jax.tree.map(np.testing.assert_array_equal, encodings.spectral_encoding(graph, 3), close)


def test_return_probabilities_by_hand():
  # From a the walk goes to b, then to a or c alike: back after 2 steps by 1/2, and so after 4.
  # From b it is back after every 2 steps. An odd number of steps never ends where it began.
  encoded = encodings.random_walk_encoding(path_of_three(), 4)["n"]
  expected = [[0, 0.5, 0, 0.5], [0, 1, 0, 1], [0, 0.5, 0, 0.5], [0, 0, 0, 0]]
  np.testing.assert_allclose(encoded, expected, atol=1e-6)
  with pytest.raises(InputError, match="steps=0: give 1 or more"):
    encodings.random_walk_encoding(path_of_three(), 0)


@pytest.mark.parametrize("cells", [1 << 24, 60, 1])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_return_probabilities_equal_powers_of_the_walk(steps, cells, monkeypatch):
  """Dense, and from the edges in chunks of one node and of a few."""
  graph = random_graph().with_self_loops()
  a = adjacency(graph)
  walk = a / np.maximum(a.sum(1, keepdims=True), 1)
  expected = [np.diag(np.linalg.matrix_power(walk, k)) for k in range(1, steps + 1)]
  monkeypatch.setattr(encodings, "CELLS", cells)
  encoded = stacked(graph, encodings.random_walk_encoding(graph, steps))
  np.testing.assert_allclose(encoded, np.stack(expected, 1), atol=1e-6)


def test_laplacian_encoding_solves_its_equation():
  graph = random_graph()
  a = adjacency(graph)
  degree = a.sum(1)
  used = degree > 0
  root = 1 / np.sqrt(np.maximum(degree, 1))
  laplacian = np.diag(used.astype(float)) - root[:, None] * a * root[None, :]
  vectors = stacked(graph, encodings.laplacian_encoding(graph, 4)).astype(float)
  eigenvalues = np.linalg.eigvalsh(laplacian[used][:, used])
  smallest = eigenvalues[eigenvalues > 1e-8][:4]
  np.testing.assert_allclose(laplacian @ vectors, vectors * smallest, atol=1e-5)
  np.testing.assert_allclose(vectors.T @ vectors, np.eye(4), atol=1e-5)
  assert not vectors[~used].any() and (~used).any()
  # a - b - c has the eigenvalues 0, 1, 2: (1, 0, -1) / sqrt(2), then (1, -sqrt(2), 1) / 2.
  encoded = encodings.laplacian_encoding(path_of_three(), 3)["n"]
  r = np.sqrt(0.5)
  expected = [[r, -0.5, 0], [0, r, 0], [-r, -0.5, 0], [0, 0, 0]]
  np.testing.assert_allclose(encoded, expected, atol=1e-6)


def test_laplacian_encoding_declines_what_is_too_large(monkeypatch):
  monkeypatch.setattr(encodings, "DENSE_NODES", 10)
  with pytest.raises(InputError, match=r"at most 10 nodes, the graph has \d+: use ran"):
    encodings.laplacian_encoding(random_graph(), 2)


def test_similar_nodes_by_hand():
  # Papers 0 and 1 have the same author, paper 2 another, paper 3 none.
  graph = HeteroGraph.from_arrays(
    nodes={"paper": {"num_nodes": 4}, "author": {"num_nodes": 2}},
    edges={("author", "writes", "paper"): ([0, 0, 1], [0, 1, 2])},
    target="paper",
  )
  similar = encodings.with_similar(graph, "paper", 2).edges["paper", "similar", "paper"]
  assert similar.senders.tolist() == [1, 0] and similar.receivers.tolist() == [0, 1]
  np.testing.assert_allclose(similar.features, 1)
  alone = HeteroGraph.from_arrays(nodes={"n": {"num_nodes": 3}}, edges={}, target="n")
  assert encodings.with_similar(alone, "n", 2).schema.edge_feature_dims == (1,)


@pytest.mark.parametrize("cells", [1 << 24, 200, 1])
def test_similar_nodes_from_lists_are_those_of_the_matmul(cells, monkeypatch):
  rng = np.random.default_rng(1)
  graph = HeteroGraph.from_arrays(
    nodes={"a": {"num_nodes": 40}, "b": {"num_nodes": 25}},
    edges={
      ("a", "r", "b"): (rng.integers(0, 40, 150), rng.integers(0, 25, 150), rng.random(150)),
      ("a", "s", "a"): rng.integers(0, 40, (2, 90)),
    },
    target="a",
  )
  expected = encodings.with_similar(graph, "a", 3).edges["a", "similar", "a"]
  monkeypatch.setattr(encodings, "DENSE_WORK", 0)
  monkeypatch.setattr(encodings, "CELLS", cells)
  found = encodings.with_similar(graph, "a", 3).edges["a", "similar", "a"]
  np.testing.assert_array_equal(found.senders, expected.senders)
  np.testing.assert_array_equal(found.receivers, expected.receivers)
  np.testing.assert_allclose(found.features, expected.features, rtol=1e-5)


def test_appended_features_are_standardised():
  graph = random_graph()
  changed = encodings.append_features(graph, encodings.degree_encoding(graph))
  assert changed.schema.feature_dims == (5 + 4, 4 + 2)
  added = changed.nodes["paper"].features[:, 5:]
  given = graph.nodes["paper"].features
  np.testing.assert_array_equal(changed.nodes["paper"].features[:, :5], given)
  np.testing.assert_allclose(added.mean(0), 0, atol=1e-6)
  assert ((np.abs(added.std(0) - 1) < 1e-3) | (added.std(0) == 0)).all()


def test_the_worm_is_encoded():
  graph = data.load("celegans")
  for encode in ENCODINGS.values():
    assert all(np.isfinite(x).all() for x in encode(graph).values())
