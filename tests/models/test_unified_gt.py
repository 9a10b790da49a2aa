"""H2G-former: what must never leak, what must not matter, and what must agree."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from h2g.graph import HeteroGraph
from h2g.models import gcn
from h2g.models import h2g_former
from h2g.models import HGT
from h2g.models import MLP
from h2g.nn import ConcatResidual
from h2g.nn import FixedResidual
from h2g.nn import HeteroEncoder
from h2g.nn import LearnedResidual
from h2g.nn import NoResidual
from h2g.nn import relation_mass
from h2g.nn.encoders import split_labels
from tests.models.graphs import random_graph

SMALL = dict(dim=16, num_layers=2, num_heads=4)


def former(graph, **settings):
  return h2g_former(graph.schema, **(SMALL | settings), rngs=nnx.Rngs(0))


def with_label(graph, row, label):
  nodes = dict(graph.nodes)
  target = graph.schema.target
  labels = np.array(nodes[target].labels)
  labels[row] = label
  nodes[target] = nodes[target].replace(labels=labels)
  return graph.replace(nodes=nodes)


@pytest.mark.slow
def test_isolated_nodes_and_empty_relations_give_finite_logits():
  graph = random_graph().with_incoming()
  logits = former(graph, edge_bias=True)(graph)
  assert logits.shape == (13, 3)
  assert bool(jnp.isfinite(logits).all())


@pytest.mark.parametrize("mode", ["train", "val", "test"])
def test_own_label_never_reaches_own_logits(mode):
  graph = random_graph().with_incoming()
  model = former(graph)
  train = jnp.arange(13) % 2 == 0
  val = jnp.arange(13) % 4 == 1
  if mode == "train":
    visible, predicted = split_labels(train, jax.random.key(3))
    assert bool(visible.any()) and bool(predicted.any())
  else:
    visible = train if mode == "val" else train | val
    predicted = val if mode == "val" else ~(train | val)
  assert not bool((visible & predicted).any())
  before = model(graph, visible=visible)
  for row in np.flatnonzero(predicted):
    for label in range(3):
      after = model(with_label(graph, row, label), visible=visible)
      np.testing.assert_array_equal(after[row], before[row])


def test_visible_labels_do_reach_their_neighbours():
  graph = random_graph().with_incoming()
  model = former(graph)
  visible = jnp.ones(13, bool)
  labels = np.array(graph.nodes["paper"].labels)
  after = model(with_label(graph, 0, (labels[0] + 1) % 3), visible=visible)
  assert np.abs(after - model(graph, visible=visible)).max() > 1e-4


def test_sampled_seeds_are_hidden_unless_the_official_behaviour_is_asked_for():
  train = jnp.ones(1000, bool)
  seeds = jnp.arange(1000) < 400
  visible, counted = split_labels(train, jax.random.key(0), seeds=seeds)
  assert not bool((visible & seeds).any())
  np.testing.assert_array_equal(counted, seeds)
  assert abs(float(visible.sum()) / 600 - 0.3) < 0.06
  visible, counted = split_labels(train, jax.random.key(0), seeds=seeds, own_label_visible=True)
  assert abs(float((visible & seeds).sum()) / 400 - 0.3) < 0.08
  np.testing.assert_array_equal(counted, seeds)


@pytest.mark.parametrize(
  "make",
  [
    former,
    *(
      functools.partial(lambda cls, g: cls(g.schema, dim=16, rngs=nnx.Rngs(0)), cls)
      for cls in (MLP, gcn, HGT)
    ),
  ],
  ids=["h2g_former", "mlp", "gcn", "hgt"],
)
def test_permuting_nodes_permutes_logits(make):
  graph = random_graph()
  rng = np.random.default_rng(1)
  order = rng.permutation(13)
  place = np.argsort(order)
  nodes = {
    "paper": {
      "features": np.asarray(graph.nodes["paper"].features)[order],
      "labels": np.asarray(graph.nodes["paper"].labels)[order],
    },
    "author": {"features": np.asarray(graph.nodes["author"].features)},
  }
  edges = {}
  for edge_type, edge in graph.edges.items():
    senders, receivers = np.asarray(edge.senders), np.asarray(edge.receivers)
    senders = place[senders] if edge_type[0] == "paper" else senders
    receivers = place[receivers] if edge_type[2] == "paper" else receivers
    edges[edge_type] = (senders, receivers, *([] if edge.features is None else [edge.features]))
  shuffled = HeteroGraph.from_arrays(nodes=nodes, edges=edges, target="paper", num_classes=3)
  model = make(graph)
  expected = model(graph.with_incoming())[order]
  np.testing.assert_allclose(model(shuffled.with_incoming()), expected, atol=2e-5)


@pytest.mark.slow
def test_one_type_and_one_relation_equal_the_untyped_transformer():
  """With one node type and one relation, H2G-former is an ordinary masked transformer."""
  rng = np.random.default_rng(0)
  num, dim = 9, 8
  x = rng.normal(size=(num, 5)).astype(np.float32)
  senders, receivers = rng.integers(0, num, (2, 30))
  graph = HeteroGraph.from_arrays(
    nodes={"n": {"features": x, "labels": np.arange(num) % 2}},
    edges={("n", "r", "n"): (senders, receivers)},
    target="n",
  ).with_incoming()
  model = h2g_former(
    graph.schema,
    dim=dim,
    num_layers=1,
    num_heads=2,
    clip=None,
    label_embedding=False,
    key_weights=False,
    rngs=nnx.Rngs(0),
  )

  def norm(h):
    return (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)

  def linear(module, h):
    return np.asarray(h) @ np.asarray(module.kernel[...][0]) + np.asarray(module.bias[...][0])

  layer = model.layers[0]
  h = x @ np.asarray(model.encoder.kernel["n"][...]) + np.asarray(model.encoder.bias["n"][...])
  h = np.asarray(jax.nn.gelu(norm(linear(model.pre, h))))
  q, k, v = np.split(linear(layer.attention.qkv, norm(h)), 3, axis=1)
  counts = np.zeros((num, num))
  np.add.at(counts, (receivers, senders), 1)  # parallel edges count as often as they stand
  out = np.zeros((num, dim))
  for head in (slice(0, 4), slice(4, 8)):
    weights = counts * np.exp(q[:, head] @ k[:, head].T / 2.0)
    total = weights.sum(1, keepdims=True)
    out[:, head] = np.where(total > 0, weights @ v[:, head] / np.where(total > 0, total, 1), 0)
  h = h + linear(layer.attention.out, out.astype(np.float32))
  z = norm(h)
  h = z + linear(layer.ffn.down, np.asarray(jax.nn.gelu(linear(layer.ffn.up, z))))
  expected = h @ np.asarray(model.head.kernel[...]) + np.asarray(model.head.bias[...])
  np.testing.assert_allclose(model(graph), expected, atol=3e-5)


@pytest.mark.parametrize("residual", [FixedResidual, LearnedResidual, ConcatResidual, NoResidual])
@pytest.mark.parametrize("norm", ["typed", None])
def test_residual_and_norm_options_compose(residual, norm):
  from h2g.models import UnifiedGT
  from h2g.nn import TypedLayerNorm

  graph = random_graph().with_incoming()
  rngs = nnx.Rngs(0)
  model = UnifiedGT(
    graph.schema,
    encoder=HeteroEncoder(graph.schema, 16, rngs=rngs),
    residual=residual,
    norm=TypedLayerNorm if norm else None,
    jumping_knowledge=norm is None,
    **SMALL,
    rngs=rngs,
  )
  assert bool(jnp.isfinite(model(graph)).all())


def test_padding_poisoned_with_nan_changes_nothing():
  from h2g.graph import padding

  graph = random_graph()
  model = former(graph, edge_bias=True)
  expected = model(graph.with_incoming())
  nodes = {name: len(nodes.ids) + 6 for name, nodes in graph.nodes.items()}
  edges = {name: len(edge.senders) + 9 for name, edge in graph.edges.items()}
  padded = padding.pad(graph, nodes, edges)

  def poison(x, real):
    x = np.array(x)
    x[real:] = np.nan
    return x

  padded = padded.replace(
    nodes={
      name: n.replace(features=poison(n.features, len(graph.nodes[name].ids)))
      for name, n in padded.nodes.items()
    }
  )
  np.testing.assert_allclose(model(padded)[:13], expected, atol=1e-5)


def test_attention_weights_add_up_and_name_their_relations():
  graph = random_graph().with_incoming()
  weights = former(graph, edge_bias=True, specialise=2.0).attention_weights(graph)
  assert [w.shape for w in weights] == [(80, 4), (80, 4)]
  total = jax.ops.segment_sum(weights[0], graph.incoming.receivers, 20)
  has_edges = np.diff(graph.incoming.indptr) > 0
  np.testing.assert_allclose(total[has_edges], 1, rtol=1e-5)
  mass = relation_mass(graph, weights[0])
  assert mass["paper", "retracted_by", "author"] == 0
  assert sum(mass.values()) == pytest.approx(has_edges[:13].mean(), rel=1e-5)
