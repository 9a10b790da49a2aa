"""Transformers over nodes: logits against dense float64 matrices."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from h2g import models
from h2g.models.goat import Codebook
from h2g.nn.full_attention import draw
from h2g.nn.tokens import chebyshev
from h2g.nn.tokens import count_edges
from h2g.nn.tokens import ego_sequences
from h2g.nn.tokens import monomials
from tests.models.test_homogeneous import A
from tests.models.test_homogeneous import encoded
from tests.models.test_homogeneous import features
from tests.models.test_homogeneous import gelu
from tests.models.test_homogeneous import GRAPH
from tests.models.test_homogeneous import linear
from tests.models.test_homogeneous import made
from tests.models.test_homogeneous import norm
from tests.models.test_homogeneous import relu
from tests.models.test_homogeneous import run
from tests.models.test_homogeneous import S
from tests.models.test_homogeneous import T
from tests.models.test_homogeneous import value


def dense_polyformer(m):
  eigenvalues, vectors = np.linalg.eig(S)
  if m.basis is monomials:
    curves = [eigenvalues**k for k in range(m.hops + 1)]
  else:
    curves = [np.cos(k * np.arccos(eigenvalues + 0j)) for k in range(m.hops + 1)]
  filters = [(vectors * curve @ np.linalg.inv(vectors)).real for curve in curves]
  out = []
  for node in range(13):
    x = np.stack([(matrix @ encoded(m))[node] for matrix in filters])
    for layer in m.layers:
      y = norm(layer.norm, x)
      mlp = lambda k, y=y, m=layer: (
        relu(y[k] @ value(m.up)[k] + value(m.up_bias)[k]) @ value(m.down)[k] + value(m.down_bias)[k]
      )
      t = np.stack([mlp(k) for k in range(len(x))])
      q, k = linear(layer.query, t), linear(layer.key, t)
      update, width = np.zeros_like(x), x.shape[1] // layer.num_heads
      for head in range(layer.num_heads):
        at = slice(head * width, (head + 1) * width)
        beta = value(layer.scale)[head] / np.arange(1, len(x) + 1) ** layer.decay
        update[:, at] = np.tanh(q[:, at] @ k[:, at].T / np.sqrt(width)) * beta @ y[:, at]
      x = x + update
      x = x + linear(layer.ffn_down, gelu(linear(layer.ffn_up, norm(layer.ffn_norm, x))))
    out.append(linear(m.head, relu(linear(m.hidden, x.sum(0)))))
  return np.stack(out)


@pytest.mark.parametrize("basis", [monomials, chebyshev])
def test_polyformer_filters_each_nodes_polynomial_tokens(basis):
  module = made(models.PolyFormer, dim=8, num_layers=2, num_heads=2, hops=3, basis=basis)
  np.testing.assert_allclose(run(module, GRAPH), dense_polyformer(module), atol=1e-4, rtol=1e-4)


def dense_goat(m):
  x = encoded(m)
  h = linear(m.in_linear, relu(norm(m.in_norm, x)))
  p = norm(m.project_norm, linear(m.project, h))
  q, k, v = np.split(linear(m.qkv, h), 3, axis=1)
  size = np.maximum(value(m.codebook.counts), 1e-6)
  centroids = value(m.codebook.sums) / size[:, None]
  far_q = linear(m.query, p)
  far_k, far_v = np.split(linear(m.key_value, centroids), 2, axis=1)
  width = q.shape[1] // m.num_heads
  local, far = np.zeros_like(q), np.zeros_like(q)
  for head in range(m.num_heads):
    at = slice(head * width, (head + 1) * width)
    own, near = value(m.hop_bias)[:, head]
    score = np.exp(q[:, at] @ k[:, at].T / np.sqrt(width))
    weights = A * score * np.exp(near) / np.maximum(A.sum(1, keepdims=True), 1)
    weights += np.eye(len(A)) * score * np.exp(own)
    local[:, at] = weights @ v[:, at] / weights.sum(1, keepdims=True)
    weights = np.exp(far_q[:, at] @ far_k[:, at].T / np.sqrt(width)) * size
    far[:, at] = weights @ far_v[:, at] / weights.sum(1, keepdims=True)
  out = np.concatenate([local, far], 1)
  out = relu(norm(m.up_norm, linear(m.up, out)))
  return linear(m.head, relu(norm(m.down_norm, linear(m.down, out))))[T]


@pytest.mark.slow
def test_goat_attends_to_neighbours_and_codebook():
  module = made(models.GOAT, dim=8, num_heads=2, head_dim=3, num_centroids=5)
  np.testing.assert_allclose(run(module, GRAPH), dense_goat(module), atol=1e-4, rtol=1e-4)


def test_goats_codebook_follows_the_rows():
  """A key trains it: after the first update its moving averages are those of a k-means step."""
  rows = np.repeat(np.random.default_rng(0).normal(size=(3, 4)), 20, axis=0).astype(np.float32)
  real = np.arange(60) < 57
  rows[57:] = np.nan
  book = Codebook(6, 4, decay=0.5, rngs=nnx.Rngs(0))

  @jax.jit
  def update(state, key):
    book = nnx.merge(structure, state)
    book.update(jnp.asarray(rows), jnp.asarray(real), key)
    return nnx.state(book)

  structure, state = nnx.split(book)
  for step in range(40):
    state = update(state, jax.random.key(step))
  counts, sums = np.asarray(state["counts"][...]), np.asarray(state["sums"][...])
  assert counts.sum() == pytest.approx(57, rel=1e-3)
  used = counts > 1e-3
  assert used.any()
  # Every row's nearest centroid is the mean of its cell. Cells are whole groups of equal rows,
  # which equal centroids share.
  centroids, log_counts = nnx.merge(structure, state).centroids()
  distance = np.linalg.norm(rows[:57, None] - np.asarray(centroids)[None], axis=-1)
  near = distance < distance.min(1, keepdims=True) + 1e-4
  for cell in np.flatnonzero(used):
    mine = near[:, cell]
    equal = used & (near == mine[:, None]).all(0)
    np.testing.assert_allclose(centroids[cell], rows[:57][mine].mean(0), atol=1e-4)
    np.testing.assert_allclose(np.exp(log_counts)[equal].sum(), mine.sum(), rtol=1e-3)
  np.testing.assert_allclose(sums[used], np.asarray(centroids)[used] * counts[used][:, None], 1e-4)


@pytest.mark.slow
def test_only_training_moves_goats_codebook():
  graph = GRAPH.with_incoming()
  module = models.GOAT(graph.schema, dim=8, num_heads=2, num_centroids=4, rngs=nnx.Rngs(0))
  module(graph)
  assert float(module.codebook.started[...]) == 0
  module(graph, key=jax.random.key(0))
  assert float(module.codebook.started[...]) == 1


def dense_attention(m, x, keys):
  """Multi-head attention of all rows to the rows `keys`, one map for all types."""
  q, k, v = np.split(x @ value(m.qkv.kernel)[0] + value(m.qkv.bias)[0], 3, axis=1)
  out, width = np.zeros_like(q), q.shape[1] // m.num_heads
  for head in range(m.num_heads):
    at = slice(head * width, (head + 1) * width)
    weights = np.exp(q[:, at] @ k[keys, at].T / np.sqrt(width))
    out[:, at] = weights @ v[keys, at] / weights.sum(1, keepdims=True)
  return out @ value(m.out.kernel)[0] + value(m.out.bias)[0]


def typed_norm(m, x):
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
  types = np.repeat(np.arange(2), (13, 7))
  return x * value(m.scale)[types] + value(m.shift)[types]


def dense_graphtrans(m, keys):
  x = linear(m.encoder.encoder, features(GRAPH))
  y = relu(norm(m.encoder.pre_norm, linear(m.encoder.pre, x)))
  for conv, layer_norm in zip(m.encoder.convs, m.encoder.norms):
    y = relu(norm(layer_norm, S @ y @ value(conv.linear.kernel) + value(conv.bias)))
  h = np.concatenate([x, y], 1)
  for layer in m.layers:
    h = h + dense_attention(layer.attention, typed_norm(layer.norm, h), keys)
    h = typed_norm(layer.ffn_norm, h)
    up, down = layer.ffn.part.up, layer.ffn.part.down
    inner = gelu(h @ value(up.kernel)[0] + value(up.bias)[0])
    h = h + inner @ value(down.kernel)[0] + value(down.bias)[0]
  return linear(m.head, h)[T]


GRAPHTRANS = dict(dim=8, gnn_dim=4, num_gnn_layers=2, num_layers=2, num_heads=2)


def test_graphtrans_is_a_gnn_and_attention_to_all_nodes():
  module = made(models.graphtrans, **GRAPHTRANS)
  expected = dense_graphtrans(module, np.arange(20))
  np.testing.assert_allclose(run(module, GRAPH), expected, atol=1e-4, rtol=1e-4)


def test_a_bounded_number_of_keys_are_real_rows_the_same_in_every_evaluation():
  graph = GRAPH.with_incoming()
  module = made(models.graphtrans, **GRAPHTRANS, max_keys=5)
  keys = np.asarray(draw(graph.row_mask, 5, None))
  assert len(set(keys)) == 5
  logits = jax.jit(module)(graph)
  np.testing.assert_allclose(logits, dense_graphtrans(module, keys), atol=1e-4, rtol=1e-4)
  real = jnp.arange(20) % 4 == 0  # five real rows: all of them, whatever the key
  assert set(np.asarray(draw(real, 5, jax.random.key(3)))) == {0, 4, 8, 12, 16}


def dense_gophormer(m, tokens, real):
  h, phi, out = encoded(m), [np.eye(20), S], []
  extra = len(value(m.everywhere))
  for row, seen in zip(np.asarray(tokens), np.asarray(real)):
    seen = np.append(seen, np.ones(extra, bool))
    x = np.concatenate([h[row], value(m.everywhere)])
    for layer, weights in zip(m.layers, value(m.proximity)):
      y = norm(layer.norm, x)
      q, (k, v) = linear(layer.query, y), np.split(linear(layer.key_value, y), 2, axis=1)
      update, width = np.zeros_like(x), x.shape[1] // layer.num_heads
      for head in range(layer.num_heads):
        at = slice(head * width, (head + 1) * width)
        logits = q[:, at] @ k[:, at].T / np.sqrt(width)
        logits[: len(row), : len(row)] += sum(
          weights[m, head] * phi[m][np.ix_(row, row)] for m in range(2)
        )
        score = np.exp(logits) * seen
        update[:, at] = score @ v[:, at] / score.sum(1, keepdims=True)
      x = x + linear(layer.out, update)
      x = x + linear(layer.down, gelu(linear(layer.up, norm(layer.ffn_norm, x))))
    out.append(linear(m.head, norm(m.norm, x[0])))
  return np.stack(out)


@pytest.mark.slow
@pytest.mark.parametrize("num_layers", [1, 2])
def test_gophormer_attends_among_drawn_tokens_biased_by_proximity(num_layers):
  graph = GRAPH.with_incoming()
  settings = dict(dim=8, num_heads=2, fanouts=(3, 2), num_global=2, num_samples=2)
  module = made(models.Gophormer, num_layers=num_layers, **settings)
  draws = [ego_sequences(graph, (3, 2), key)[:2] for key in jax.random.split(jax.random.key(0), 2)]
  expected = np.mean([dense_gophormer(module, *draw) for draw in draws], axis=0)
  np.testing.assert_allclose(jax.jit(module)(graph), expected, atol=1e-4, rtol=1e-4)
  assert np.isfinite(run(module, GRAPH)).all()  # other draws: there are more rows


def dense_hinormer(m, tokens, real):
  types = np.repeat(np.arange(2), (13, 7))
  leaky = lambda x: np.where(x > 0, x, 0.01 * x)
  rows = [
    np.asarray(GRAPH.nodes[name].features, np.float64) @ value(m.encoder.kernel[name])
    + value(m.encoder.bias[name])
    for name in GRAPH.schema.node_types
  ]
  h = np.concatenate(rows)
  r = np.eye(2)[types]
  for conv in m.convs:
    h = relu(S @ linear(conv.linear, h) + value(conv.bias))
  for at, layer in enumerate(m.types.layers):
    weighted = linear(layer, r) * value(m.types.weights)[at][types][:, None]
    r = relu(S @ weighted + value(m.types.biases)[at])
  out = []
  for row, seen in zip(np.asarray(tokens), np.asarray(real)):
    x, near = h[row], r[row]
    for layer in m.layers:
      left, right = linear(layer.receiver, x), linear(layer.sender, x)
      update, width = np.zeros_like(x), x.shape[1] // layer.num_heads
      for head in range(layer.num_heads):
        at, of = slice(head * width, (head + 1) * width), slice(2 * head, 2 * head + 2)
        score = linear(layer.receiver_score, leaky(left[:, at]))
        score = score + linear(layer.sender_score, leaky(right[:, at])).T
        pairs = linear(layer.type_query, near)[:, of] @ linear(layer.type_key, near)[:, of].T
        weights = np.exp((score + layer.beta * pairs) / layer.temperature) * seen
        update[:, at] = weights @ right[:, at] / weights.sum(1, keepdims=True)
      x = norm(layer.norm, x + linear(layer.out, update))
    out.append(linear(m.head, x[0]))
  return np.stack(out)


def test_hinormer_scores_features_and_types_apart():
  graph = GRAPH.with_incoming()
  module = made(models.HINormer, dim=8, num_layers=2, fanouts=(3, 1), beta=0.7, temperature=1.5)
  drawn = ego_sequences(graph, (3, 1), jax.random.key(0))[:2]
  np.testing.assert_allclose(
    jax.jit(module)(graph), dense_hinormer(module, *drawn), atol=1e-4, rtol=1e-4
  )
  assert np.isfinite(run(module, GRAPH)).all()  # other draws: there are more rows


def test_tokens_are_drawn_evenly_from_incoming_edges():
  graph = GRAPH.with_incoming()
  tokens, real, edges = jax.jit(ego_sequences, static_argnums=1)(graph, (500, 2), jax.random.key(1))
  tokens, real = np.asarray(tokens), np.asarray(real)
  assert (tokens[:, 0] == np.arange(13)).all() and real[:, 0].all()
  for node in range(13):
    assert real[node, 1:].all() == (A[node].sum() > 0) == real[node, 1:].any()
    if A[node].sum():
      share = np.bincount(tokens[node, 1:501], minlength=20) / 500
      np.testing.assert_allclose(share, A[node] / A[node].sum(), atol=0.1)
      parents = np.repeat(tokens[node, 1:501], 2)
      assert (A[parents, tokens[node, 501:]] > 0).all()
  i, j = np.mgrid[:20, :20]
  counted = jax.jit(count_edges)(jnp.asarray(i), jnp.asarray(j), edges, graph)
  np.testing.assert_array_equal(counted, A)
