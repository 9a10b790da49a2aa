"""The parts that UnifiedGT is put together from, each against dense float64 matrices."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from h2g.errors import InputError
from h2g.graph import padding
from h2g.graph import views
from h2g.models.unified_gt import GTLayer
from h2g.models.unified_gt import shared
from h2g.models.unified_gt import UnifiedGT
from h2g.nn import conv
from h2g.nn import CrossTypeAttention
from h2g.nn import EdgeTypeAttention
from h2g.nn import FixedResidual
from h2g.nn import HeteroEncoder
from h2g.nn import LearnedResidual
from h2g.nn import pair_bias
from h2g.nn import structure
from h2g.nn import TypedBatchNorm
from h2g.nn import TypedFFN
from h2g.nn import TypedLayerNorm
from h2g.nn.full_attention import FullAttention
from tests.models.graphs import adjacency
from tests.models.graphs import random_graph
from tests.models.test_homogeneous import symmetric
from tests.models.test_homogeneous import value

GRAPH = random_graph(3, num_edges=12).with_reverses()
A = adjacency(GRAPH)
N = len(A)
TYPES = np.repeat([0, 1], (13, 7))
X = np.random.default_rng(0).normal(size=(N, 8)).astype(np.float32)
SCHEMA = GRAPH.schema


def distances(a):
  """[N, N] by breadth-first search: edges from column to row, inf where there is no way."""
  out = np.full(a.shape, np.inf)
  for start in range(len(a)):
    layer, hop = {start}, 0
    while layer:
      for node in layer:
        out[node, start] = hop
      layer = {v for u in layer for v in np.flatnonzero(a[:, u]) if np.isinf(out[v, start])}
      hop += 1
  return out


D = distances(A)


def made(module):
  """A copy whose every parameter is random."""
  rng = np.random.default_rng(1)
  definition, state = nnx.split(module)
  state = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape, scale=0.4), x.dtype), state)
  return nnx.merge(definition, state)


def run(module, *args, **kwargs):
  """module(x, graph) on a padded copy with NaN in what is padded."""
  nodes = {name: count + 3 for name, count in GRAPH.num_nodes.items()}
  padded = padding.pad(GRAPH, nodes, {name: len(e.senders) + 5 for name, e in GRAPH.edges.items()})
  x = np.full((N + 6, 8), np.nan, np.float32)
  rows = np.concatenate([np.arange(13), np.arange(16, 23)])
  x[rows] = X
  out = jax.jit(lambda x, g: module(x, g, *args, **kwargs))(jnp.asarray(x), padded)
  return np.asarray(out)[rows]


def on_graph(module, graph=GRAPH):
  return np.asarray(jax.jit(lambda m, g: m(g))(module, graph.with_incoming()))


def attend(q, k, v, heads, allowed, *, bias=0.0, clip=np.inf):
  """Softmax attention per head; `allowed` counts how often a pair stands; no pair gives zeros."""
  out, width = np.zeros((len(q), v.shape[1])), q.shape[1] // heads
  bias = np.broadcast_to(bias, (heads, len(q), len(k)))
  for head in range(heads):
    at = slice(head * width, (head + 1) * width)
    logits = np.clip(q[:, at] @ k[:, at].T / np.sqrt(width), -clip, clip) + bias[head]
    weights = allowed * np.exp(logits)
    total = weights.sum(1, keepdims=True)
    out[:, at] = weights @ v[:, at] / np.where(total > 0, total, 1)
  return out


def typed(module, x):
  kernel, bias = value(module.kernel), value(module.bias)
  types = TYPES if len(kernel) > 1 else np.zeros(N, int)
  return np.einsum("nf,nfg->ng", x, kernel[types]) + bias[types]


# Pairs of nodes.


def test_distances_and_masks_of_pairs():
  assert np.unique(D[np.isfinite(D)]).size > 4  # far enough for the test to mean something
  hops = jax.jit(pair_bias.hop_distance, static_argnums=1)(GRAPH.with_incoming(), 3)
  np.testing.assert_array_equal(hops, np.minimum(D, 4))
  mask = on_graph(pair_bias.EdgeMask(SCHEMA, 2, rngs=nnx.Rngs(0)))
  np.testing.assert_array_equal(mask[0, 0], np.where(A > 0, 0, -np.inf))


@pytest.mark.parametrize("mask", [True, False])
def test_hop_bias_is_learned_per_distance_and_masks_or_shares_what_is_beyond(mask):
  module = made(pair_bias.HopBias(SCHEMA, 2, hops=2, mask=mask, rngs=nnx.Rngs(0)))
  table = value(module.bias)
  table = np.concatenate([table, np.full((1, 2), -np.inf)]) if mask else table
  expected = table[np.minimum(D, 3).astype(int)].transpose(2, 0, 1)
  np.testing.assert_allclose(on_graph(module)[0], expected, rtol=1e-6)


def test_proximity_bias_mixes_powers_of_the_propagation():
  module = made(pair_bias.ProximityBias(SCHEMA, 2, orders=3, rngs=nnx.Rngs(0)))
  s = symmetric(A)
  expected = np.einsum("mh,mij->hij", value(module.bias), [np.eye(N), s, s @ s])
  np.testing.assert_allclose(on_graph(module)[0], expected, atol=1e-6)


def test_biases_of_all_pairs_refuse_large_graphs(monkeypatch):
  monkeypatch.setattr(pair_bias, "MAX_NODES", 19)
  with pytest.raises(InputError, match="needs at most 19 nodes, the graph has 20"):
    pair_bias.adjacency(GRAPH.with_incoming())


# Attention.


@pytest.mark.few(2)
@pytest.mark.parametrize("is_typed", [True, False])
@pytest.mark.parametrize("which", ["none", "edge", "hops"])
def test_full_attention_with_masks(is_typed, which):
  biases = {
    "none": (),
    "edge": (pair_bias.EdgeMask,),
    "hops": (functools.partial(pair_bias.HopBias, hops=2), pair_bias.ProximityBias),
  }[which]
  module = made(FullAttention(SCHEMA, 8, 2, typed=is_typed, biases=biases, rngs=nnx.Rngs(0)))
  q, k, v = np.split(typed(module.qkv, X), 3, axis=1)
  bias, allowed = 0.0, np.ones((N, N))
  if which == "edge":
    allowed = (A > 0).astype(float)
  if which == "hops":
    allowed = (D <= 2).astype(float)
    bias = value(module.biases[0].bias)[np.minimum(D, 2).astype(int)].transpose(2, 0, 1)
    s = symmetric(A)
    bias = bias + np.einsum("mh,mij->hij", value(module.biases[1].bias), [np.eye(N), s, s @ s])
  expected = typed(module.out, attend(q, k, v, 2, allowed, bias=bias))
  np.testing.assert_allclose(run(module), expected, atol=1e-4, rtol=1e-4)


def test_attention_along_edges_is_full_attention_behind_an_edge_mask():
  """Where no two edges are parallel, sparse and dense forms of one attention agree."""
  pairs = np.stack(np.nonzero(A[:13, :13] > 0))
  graph = random_graph(3, num_edges=12)
  names = ("paper", "cites", "paper"), ("author", "writes", "paper")
  writes = np.stack(np.nonzero(A[:13, 13:] > 0))
  graph = graph.with_edges(names[0], pairs[1], pairs[0]).with_edges(names[1], writes[1], writes[0])
  sparse = CrossTypeAttention(graph.schema, 8, 2, key_weights=False, clip=None, rngs=nnx.Rngs(0))
  dense = FullAttention(
    graph.schema, 8, 2, typed=True, biases=(pair_bias.EdgeMask,), rngs=nnx.Rngs(1)
  )
  dense.qkv, dense.out = sparse.qkv, sparse.out
  call = jax.jit(lambda m, x, g: m(x, g))
  graph = graph.with_incoming()
  np.testing.assert_allclose(call(sparse, X, graph), call(dense, X, graph), atol=1e-5)


@pytest.mark.parametrize("hops", [2, 3])
def test_hop_bias_along_edges(hops):
  graph = views.view(GRAPH, f"strict_{hops}hop").with_incoming()
  module = CrossTypeAttention(
    graph.schema, 8, 2, key_weights=False, hop_bias=True, clip=None, rngs=nnx.Rngs(0)
  )
  module = made(module)
  assert module.hop_bias.shape == (hops, 2)
  q, k, v = np.split(typed(module.qkv, X), 3, axis=1)
  # Once per pair further away, as often as it stands for a pair that an edge joins.
  allowed = np.where(A > 0, A, (D >= 2) & (hops >= D))
  table = np.concatenate([np.zeros((1, 2)), value(module.hop_bias)])
  hop = np.where(A > 0, 1, np.minimum(D, hops)).astype(int)
  expected = typed(module.out, attend(q, k, v, 2, allowed, bias=table[hop].transpose(2, 0, 1)))
  out = jax.jit(lambda m, x, g: m(x, g))(module, X, graph)
  np.testing.assert_allclose(out, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("all_pairs", [False, True])
def test_edge_type_attention_has_maps_and_a_softmax_per_relation(all_pairs):
  module = EdgeTypeAttention(SCHEMA, 8, 2, all_pairs=all_pairs, clip=0.3, rngs=nnx.Rngs(0))
  module = made(module)
  expected = np.zeros((N, 8))
  for r, name in enumerate(SCHEMA.edge_types):
    s, t = slice(*GRAPH.rows(name[0])), slice(*GRAPH.rows(name[2]))
    linear = lambda m, x, r=r: x @ value(m.kernel)[r] + value(m.bias)[r]
    k, v = np.split(linear(module.key_value, X[s]), 2, axis=1)
    allowed = np.ones((t.stop - t.start, s.stop - s.start))
    if not all_pairs:
      allowed = adjacency(GRAPH, [name])[t, s]
    out = attend(linear(module.query, X[t]), k, v, 2, allowed, clip=0.3)
    expected[t] += linear(module.out, out)
  np.testing.assert_allclose(run(module), expected, atol=1e-4, rtol=1e-4)


# Encoders.


def test_encoders_of_where_a_node_stands():
  graph = GRAPH
  types = made(structure.TypeEmbedding(SCHEMA, 4, rngs=nnx.Rngs(0)))
  degrees = made(structure.DegreeEncoder(SCHEMA, 4, limit=3, rngs=nnx.Rngs(0)))
  hops = made(structure.HopDistanceEncoder(SCHEMA, 4, hops=2, rngs=nnx.Rngs(0)))
  clip = lambda count: np.minimum(count, 3).astype(int)
  table = value(degrees.table)
  expected = [
    value(types.table)[TYPES],
    table[0][clip(A.sum(1))] + table[1][clip(A.sum(0))],
    value(hops.table)[np.minimum(D, 3).astype(int)][:, :13].mean(1),
  ]
  parts = [types, degrees, hops]
  for part, rows in zip(parts, expected):
    np.testing.assert_allclose(on_graph(part, graph), rows, atol=1e-6)
  total = on_graph(structure.SumEncoder(parts), graph)
  np.testing.assert_allclose(total, sum(expected), atol=1e-6)


# Norms, and the layer.


def test_batch_norm_is_over_the_real_rows_of_each_type():
  module = made(TypedBatchNorm(2, 8, rngs=nnx.Rngs(0)))
  found = run(lambda x, g: module(x, g.node_offsets, g.row_mask))
  for t in (0, 1):
    x = X[t == TYPES]
    x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    expected = x * value(module.scale)[t] + value(module.shift)[t]
    np.testing.assert_allclose(found[t == TYPES], expected, atol=1e-5)


def test_one_set_of_parameters_for_all_types():
  ffn = shared(TypedFFN)(2, 8, rngs=nnx.Rngs(0))
  assert ffn.part.up.kernel.shape == (1, 8, 16)
  norm = shared(TypedLayerNorm)(2, 8, rngs=nnx.Rngs(0))
  x = norm(jnp.asarray(X), GRAPH.node_offsets, None)
  np.testing.assert_allclose(x, TypedLayerNorm(1, 8, rngs=nnx.Rngs(0))(X, (0, N)), atol=1e-6)


OPERATORS = {
  "gcn": functools.partial(conv.GCNConv, out_dim=8),
  "gat": functools.partial(conv.GATConv, head_dim=4, num_heads=2),
}


@pytest.mark.few(3)
@pytest.mark.parametrize("local", OPERATORS)
@pytest.mark.parametrize("attention", [None, FullAttention])
def test_a_local_operator_beside_attention_is_added_up(local, attention):
  layer = GTLayer(
    SCHEMA,
    8,
    2,
    attention=attention,
    local=OPERATORS[local],
    ffn=None,
    residual=LearnedResidual,
    norm=TypedLayerNorm,
    dropout_rate=0.5,
    rngs=nnx.Rngs(0),
  )
  layer, graph = made(layer), GRAPH.with_incoming()
  x, offsets = jnp.asarray(X), GRAPH.node_offsets

  @jax.jit
  def both(layer, x, graph):
    h = layer.local_residual(x, layer.local(layer.local_norm(x, offsets), graph), offsets)
    if attention:
      h = h + layer.residual(x, layer.attention(layer.norm(x, offsets), graph), offsets)
    return layer.ffn_norm(h, offsets), layer(x, graph, key=None)

  expected, found = both(layer, x, graph)
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.few("options1")
@pytest.mark.parametrize(
  "options",
  [
    dict(attention=EdgeTypeAttention, ffn=None, norm=TypedBatchNorm),
    dict(attention=FullAttention, ffn=shared(TypedFFN), norm=shared(TypedLayerNorm), pre=None),
    dict(attention=None, local=OPERATORS["gcn"], jumping_knowledge=True, norm=None, num_layers=2),
    dict(
      attention=functools.partial(FullAttention, typed=True, biases=(pair_bias.HopBias,)),
      local=functools.partial(conv.SAGEConv, out_dim=8),
      num_heads=4,
    ),
  ],
)
def test_whole_models_of_any_parts_train(options):
  graph = random_graph(3, num_edges=12)
  if options["attention"] is FullAttention:
    graph = views.with_virtual_nodes(graph, 2)
  graph = graph.with_incoming()
  rngs = nnx.Rngs(0)
  parts = [
    HeteroEncoder(graph.schema, 8, rngs=rngs),
    structure.TypeEmbedding(graph.schema, 8, rngs=rngs),
    structure.DegreeEncoder(graph.schema, 8, rngs=rngs),
  ]
  settings = dict(dim=8, num_layers=1, num_heads=2, residual=FixedResidual) | options
  model = UnifiedGT(graph.schema, encoder=structure.SumEncoder(parts), **settings, rngs=rngs)
  definition, params = nnx.split(model)

  @jax.jit
  def gradient(params, key):
    loss = lambda params: nnx.merge(definition, params)(graph, key=key).var()
    return jax.grad(loss)(params)

  found = jax.tree.leaves(gradient(params, jax.random.key(0)))
  assert all(bool(jnp.isfinite(x).all()) for x in found)
  assert sum(bool((x != 0).any()) for x in found) > 0.7 * len(found)
