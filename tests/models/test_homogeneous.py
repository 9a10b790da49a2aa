"""Networks on the homogenised graph: logits against dense float64 matrices, and against PyG."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from h2g import models
from h2g.errors import InputError
from h2g.graph import padding
from h2g.graph import views
from h2g.models.homogeneous import Homogeneous
from h2g.models.homogeneous import input_map
from h2g.nn.conv import GCNConv
from tests.models.graphs import adjacency
from tests.models.graphs import random_graph

GRAPH = random_graph(3, num_edges=25).with_reverses()
STRICT = views.view(random_graph(3, num_edges=6).with_reverses(), "strict_2hop")
VISIBLE = np.arange(13) % 2 == 0
relu = functools.partial(np.maximum, 0.0)


def made(make, graph=GRAPH, **settings):
  """A model whose every parameter, zero biases too, is random."""
  module = make(graph.schema, **settings, rngs=nnx.Rngs(0))
  rng = np.random.default_rng(1)
  definition, params, rest = nnx.split(module, nnx.Param, ...)
  params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape, scale=0.4), x.dtype), params)
  return nnx.merge(definition, params, rest)


def run(module, graph):
  """Logits on a padded copy whose padded features are NaN."""
  nodes = {name: count + 3 for name, count in graph.num_nodes.items()}
  padded = padding.pad(graph, nodes, {name: len(e.senders) + 5 for name, e in graph.edges.items()})
  poisoned = {}
  for name, found in padded.nodes.items():
    features = np.array(found.features)
    features[graph.num_nodes[name] :] = np.nan
    poisoned[name] = found.replace(features=features)
  visible = jnp.asarray(np.pad(VISIBLE, (0, 3)))
  call = jax.jit(lambda module, graph, visible: module(graph, visible=visible))
  return np.asarray(call(module, padded.replace(nodes=poisoned), visible))[:13]


def value(parameter):
  return np.asarray(parameter[...], np.float64)


def linear(module, x):
  return x @ value(module.kernel) + (value(module.bias) if module.bias is not None else 0)


def norm(module, x):
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  return x * value(module.scale) + value(module.bias)


def silu(x):
  return x / (1 + np.exp(-x))


def gelu(x):
  return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def softmax(x, axis):
  x = np.exp(x - x.max(axis, keepdims=True))
  return x / x.sum(axis, keepdims=True)


def unit(x):
  length = np.linalg.norm(x, axis=-1, keepdims=True)
  return x / np.where(length > 0, length, 1)


def features(graph):
  rows = [np.asarray(graph.nodes[name].features, np.float64) for name in graph.schema.node_types]
  return np.concatenate([np.pad(x, ((0, 0), (0, 5 - x.shape[1]))) for x in rows])


def encoded(module, graph=GRAPH):
  return linear(module.encoder, features(graph))


def symmetric(a, self_loops=True):
  a = a + np.eye(len(a)) if self_loops else a
  degree = a.sum(1)
  scale = np.where(degree > 0, 1 / np.sqrt(np.maximum(degree, 1)), 0)
  return scale[:, None] * a * scale[None, :]


A = adjacency(GRAPH)
S = symmetric(A)
T = slice(0, 13)  # the target's rows


def dense_label_propagation(m):
  y = np.zeros((len(A), 3))
  labels = np.asarray(GRAPH.target_labels)
  seen = VISIBLE & (labels >= 0)
  y[T][seen, labels[seen]] = 1
  # The limit of the iteration, (1 - alpha) (I - alpha S^hops)^-1 Y.
  step = np.linalg.matrix_power(symmetric(A, m.self_loops), m.hops)
  f = (1 - m.alpha) * np.linalg.solve(np.eye(len(A)) - m.alpha * step, y)[T] + m.floor
  return np.log(f / f.sum(1, keepdims=True))


def dense_sgc(m):
  return linear(m.head, np.linalg.matrix_power(S, m.hops) @ encoded(m))[T]


def dense_predictor(m):
  h = encoded(m)
  for layer, layer_norm in zip(m.layers, m.norms):
    h = relu(norm(layer_norm, linear(layer, h)))
  return linear(m.last, h)


def dense_appnp(m):
  z, k, alpha = dense_predictor(m.predictor), m.num_steps, m.alpha
  powers = [np.linalg.matrix_power((1 - alpha) * S, i) for i in range(k + 1)]
  return ((powers[k] + alpha * sum(powers[:k])) @ z)[T] + value(m.predictor.bias)


def dense_gpr_gnn(m):
  mix = sum(g * np.linalg.matrix_power(S, k) for k, g in enumerate(value(m.gamma)))
  return (mix @ dense_predictor(m.predictor))[T] + value(m.predictor.bias)


def dense_fagcn(m):
  start = h = relu(encoded(m))
  degree = np.maximum(A.sum(1), 1)
  for conv in m.convs:
    gates = np.tanh(h @ value(conv.receiver) + (h @ value(conv.sender)).T)
    h = m.convs[0].eps * start + A * gates / np.sqrt(np.outer(degree, degree)) @ h
  return linear(m.head, h)[T]


def dense_h2gcn(m):
  names = [name for name in STRICT.schema.edge_types if name[1] == views.STRICT]
  far = symmetric(adjacency(STRICT, names), False)
  near = adjacency(STRICT, [name for name in STRICT.schema.edge_types if name not in names])
  near = symmetric(near, False)
  states = [relu(encoded(m, STRICT))]
  for _ in range(m.num_rounds):
    states.append(np.concatenate([near @ states[-1], far @ states[-1]], 1))
  return linear(m.head, np.concatenate(states, 1))[T]


def dense_adjacency(m):
  return A @ np.concatenate([value(m.tables[n]) for n in ("paper", "author")]) + value(m.bias)


def dense_linkx(m):
  a, x = dense_adjacency(m.adjacency), linear(m.features, encoded(m))
  h = relu(linear(m.mix, np.concatenate([a, x], 1)) + a + x)
  for layer, layer_norm in zip(m.layers, m.norms):
    h = norm(layer_norm, relu(linear(layer, h)))
  return linear(m.head, h)[T]


def dense_nagphormer(m):
  h = encoded(m)
  x = np.stack([np.linalg.matrix_power(S, k) @ h for k in range(m.hops + 1)], 1)[T]
  for layer in m.layers:
    y = norm(layer.norm, x)
    q, (k, v) = linear(layer.query, y), np.split(linear(layer.key_value, y), 2, axis=2)
    cut = lambda y, heads=layer.num_heads: y.reshape(*y.shape[:2], heads, -1).swapaxes(1, 2)
    q, k, v = cut(q), cut(k), cut(v)
    weights = softmax(q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1]), -1)
    x = x + linear(layer.out, (weights @ v).swapaxes(1, 2).reshape(x.shape))
    x = x + linear(layer.down, gelu(linear(layer.up, norm(layer.ffn_norm, x))))
  x = norm(m.norm, x)
  scores = np.stack([linear(m.score, np.concatenate([x[:, 0], x[:, k]], 1)) for k in (1, 2)], 1)
  out = x[:, 0] + (softmax(scores, 1) * x[:, 1:]).sum(1)
  return linear(m.head, relu(linear(m.hidden, out)))


def dense_lsgnn(m):
  h, raw, steps = encoded(m), features(GRAPH), m.num_steps
  d = np.linalg.norm(raw[:, None] - raw[None], axis=-1)
  pair = linear(m.distance_down, silu(linear(m.distance_up, np.stack([d, d**2], -1))))[..., 0]
  s = (A * pair).sum(1, keepdims=True) / np.maximum(A.sum(1, keepdims=True), 1)
  root = np.sqrt(A.sum(1) + 1)
  bare = A / np.outer(root, root)
  parts = [h]
  for own, sign in ((m.beta, 1), (1 - m.beta, -1)):
    matrix, found = own * np.eye(len(A)) + sign * bare, []
    for k in range(steps):
      x = h if k == 0 else (1 - m.gamma) * h - m.gamma * np.sum(found, axis=0)
      found.append(matrix @ x)
    parts += found
  for weight in m.reduce:
    parts = [relu(unit(x @ w)) for x, w in zip(parts, value(weight))]
  own, low, high = parts[0], parts[1 : steps + 1], parts[steps + 1 :]
  shares = linear(m.share_down, silu(linear(m.share_up, np.concatenate([s, s**2], 1))))
  out = [own]
  for k in range(steps):
    a = shares[:, 3 * k : 3 * k + 3, None]
    out.append(a[:, 0] * own + a[:, 1] * low[k] + a[:, 2] * high[k])
  out.append(relu(norm(m.adjacency_norm, dense_adjacency(m.adjacency))))
  return linear(m.head, np.concatenate([unit(x) for x in out], 1))[T]


def dense_glognn(m):
  h = m.delta * linear(m.features, encoded(m)) + (1 - m.delta) * dense_adjacency(m.adjacency)
  start = h = linear(m.head, relu(linear(m.hidden, relu(h))))
  keep, n = 1 - m.gamma, len(A)
  orders = sum(w * np.linalg.matrix_power(S, k + 1) for k, w in enumerate(value(m.order_weight)))
  for _ in range(m.num_rounds):
    ridge = keep**2 * h @ h.T + (m.alpha + m.beta) * np.eye(n)
    z = keep * h @ h.T + m.beta * orders - m.gamma * keep * start @ h.T
    h = keep * z @ np.linalg.inv(ridge) @ h + m.gamma * start
  return h[T]


def dense_shell(m):
  h, states = relu(encoded(m)), []
  for conv, layer_norm in zip(m.convs, m.norms):
    h = h + relu(norm(layer_norm, S @ h @ value(conv.linear.kernel) + value(conv.bias)))
    states.append(h)
  return linear(m.head, np.concatenate(states, 1))[T]


def shell(schema, *, rngs):
  return Homogeneous(
    schema,
    encoder=input_map(schema, 8, rngs=rngs),
    dim=8,
    convs=[functools.partial(GCNConv, out_dim=8)] * 2,
    residual=True,
    jumping_knowledge=True,
    rngs=rngs,
  )


COUNTS = GRAPH.num_nodes
CASES = {
  "label_propagation": (models.LabelPropagation, dict(alpha=0.6), dense_label_propagation),
  "sgc": (models.SGC, dict(dim=8, hops=2), dense_sgc),
  "appnp": (models.APPNP, dict(dim=8, num_steps=3), dense_appnp),
  "gpr_gnn": (models.GPRGNN, dict(dim=8, num_steps=3), dense_gpr_gnn),
  "fagcn": (models.FAGCN, dict(dim=8), dense_fagcn),
  "h2gcn": (models.H2GCN, dict(dim=4, num_rounds=2), dense_h2gcn),
  "linkx": (models.LINKX, dict(dim=8, num_layers=2, num_nodes=COUNTS), dense_linkx),
  "nagphormer": (
    models.NAGphormer,
    dict(dim=8, num_layers=1, num_heads=2, hops=2),
    dense_nagphormer,
  ),
  "lsgnn": (models.LSGNN, dict(dim=8, num_steps=2, num_nodes=COUNTS), dense_lsgnn),
  "glognn": (models.GloGNN, dict(dim=8, num_rounds=2, num_nodes=COUNTS), dense_glognn),
  "shell": (shell, {}, dense_shell),
}


@pytest.mark.few(4)
@pytest.mark.parametrize("name", CASES)
def test_logits_equal_the_dense_form_whatever_stands_in_the_padding(name):
  make, settings, dense = CASES[name]
  graph = STRICT if name == "h2gcn" else GRAPH
  module = made(make, graph, **settings)
  np.testing.assert_allclose(run(module, graph), dense(module), atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize(
  "make, settings, widths",
  [
    (models.gcn, {}, [8, 8]),
    (models.graphsage, {}, [8, 8]),
    (models.gat, {"num_heads": 2}, [8, 8]),
    (models.gat, {"num_heads": 2, "head_dim": 8}, [16, 8]),
    (models.gin, {}, [8, 8]),
    (models.mixhop, {"max_power": 2}, [24, 24]),
    (models.acm_gcn, {}, [8, 8]),
  ],
)
def test_operators_in_the_shell(make, settings, widths):
  module = make(GRAPH.schema, dim=8, num_layers=2, **settings, rngs=nnx.Rngs(0))
  assert [conv.out_dim for conv in module.convs] == widths
  logits = jax.eval_shape(module, GRAPH.with_incoming(), key=jax.random.key(0))
  assert logits.shape == (13, 3)


def test_label_propagation_has_no_parameters_and_no_opinion_without_labels():
  module = models.LabelPropagation(GRAPH.schema, rngs=nnx.Rngs(0))
  assert not jax.tree.leaves(nnx.state(module, nnx.Param))
  np.testing.assert_allclose(jax.jit(module)(GRAPH.with_incoming()), np.log(1 / 3), rtol=1e-5)


@pytest.mark.slow
def test_lsgnn_cut_into_blocks_of_edges_is_the_same(monkeypatch):
  from h2g.models import lsgnn

  module = made(models.LSGNN, dim=4, num_steps=2, embed_adjacency=False)
  graph = GRAPH.with_incoming()
  similarity = lambda: jax.jit(lambda m, g: m.similarity(g))(module, graph)
  whole = similarity()
  monkeypatch.setattr(lsgnn, "BLOCK", 7)
  np.testing.assert_allclose(similarity(), whole, rtol=1e-5)


def test_without_any_features_each_type_has_one_learned_vector():
  graph = random_graph()
  bare = graph.replace(
    nodes={name: nodes.replace(features=None) for name, nodes in graph.nodes.items()},
    schema=type(graph.schema)(**(vars_of(graph.schema) | {"feature_dims": (0, 0)})),
  )
  rows = np.asarray(input_map(bare.schema, 4, rngs=nnx.Rngs(0))(bare))
  assert len(np.unique(rows, axis=0)) == 2


def vars_of(schema):
  return {name: getattr(schema, name) for name in schema.__dataclass_fields__}


def test_what_does_not_fit_is_said():
  with pytest.raises(InputError, match="num_heads=3 does not divide dim=8"):
    models.gat(GRAPH.schema, dim=8, num_heads=3, rngs=nnx.Rngs(0))
  with pytest.raises(InputError, match="num_heads=3 does not divide dim=8"):
    models.NAGphormer(GRAPH.schema, dim=8, num_heads=3, rngs=nnx.Rngs(0))
  with pytest.raises(InputError, match="lsgnn embeds the adjacency: give num_nodes"):
    models.LSGNN(GRAPH.schema, rngs=nnx.Rngs(0))
  with pytest.raises(InputError, match="distance two: set config"):
    models.H2GCN(GRAPH.schema, rngs=nnx.Rngs(0))
  with pytest.raises(InputError, match=r"residual needs layers of one width, they have \[4, 8\]"):
    Homogeneous(
      GRAPH.schema,
      encoder=input_map(GRAPH.schema, 4, rngs=nnx.Rngs(0)),
      dim=4,
      convs=[functools.partial(GCNConv, out_dim=8)],
      residual=True,
      rngs=nnx.Rngs(0),
    )


# PyG, with the same weights; an edge from a node to itself would be a self loop to it.


def test_whole_models_equal_pyg():
  reason = "PyTorch Geometric is not installed (extra [pyg])"
  torch = pytest.importorskip("torch", reason=reason)
  nn = pytest.importorskip("torch_geometric.nn", reason=reason)
  name = ("paper", "cites", "paper")
  senders, receivers = random_graph(3, num_edges=25)._given_edges()[name]
  keep = senders != receivers
  graph = random_graph(3, num_edges=25).with_edges(name, senders[keep], receivers[keep])
  graph = graph.with_reverses()
  receivers, senders = np.nonzero(adjacency(graph))
  counts = adjacency(graph)[receivers, senders].astype(int)
  edges = torch.tensor(np.repeat(np.stack([senders, receivers]), counts, axis=1))
  tensor = lambda x: torch.tensor(np.array(x, np.float32))
  put = lambda x: torch.nn.Parameter(tensor(x))
  close = lambda ours, theirs: np.testing.assert_allclose(
    run(ours, graph), theirs.detach().numpy()[T], atol=5e-5, rtol=5e-5
  )

  ours = made(models.SGC, graph, dim=8, hops=2)
  theirs = nn.SGConv(8, 3, K=2)
  theirs.lin.weight, theirs.lin.bias = put(value(ours.head.kernel).T), put(value(ours.head.bias))
  close(ours, theirs(tensor(encoded(ours, graph)), edges))

  ours = made(models.APPNP, graph, dim=8, num_layers=1, num_steps=3, alpha=0.2)
  z = linear(ours.predictor.last, encoded(ours.predictor, graph))
  close(ours, nn.APPNP(3, 0.2)(tensor(z), edges) + tensor(value(ours.predictor.bias)))

  ours = made(models.LINKX, graph, dim=8, num_nodes=graph.num_nodes)
  theirs = nn.LINKX(len(adjacency(graph)), 8, 8, 3, num_layers=1)
  tables = [value(ours.adjacency.tables[t]) for t in graph.schema.node_types]
  theirs.edge_lin.weight = put(np.concatenate(tables))
  theirs.edge_lin.bias = put(value(ours.adjacency.bias))
  mix = value(ours.mix.kernel)
  theirs.cat_lin1.weight, theirs.cat_lin1.bias = put(mix[:8].T), put(value(ours.mix.bias))
  theirs.cat_lin2.weight, theirs.cat_lin2.bias = put(mix[8:].T), put(np.zeros(8))
  for lin, mine in (
    (theirs.node_mlp.lins[0], ours.features),
    (theirs.final_mlp.lins[0], ours.head),
  ):
    lin.weight, lin.bias = put(value(mine.kernel).T), put(value(mine.bias))
  close(ours, theirs(tensor(encoded(ours, graph)), edges))

  ours = models.LabelPropagation(
    graph.schema, alpha=0.6, num_steps=20, self_loops=False, floor=0.0, rngs=nnx.Rngs(0)
  )
  labels = np.asarray(graph.target_labels)
  seen = np.zeros(len(adjacency(graph)), bool)
  seen[T] = VISIBLE & (labels >= 0)
  given = torch.zeros(len(seen), dtype=torch.long)
  given[T] = torch.tensor(np.maximum(labels, 0).astype(np.int64))
  theirs = nn.LabelPropagation(20, 0.6)(given, edges, torch.tensor(seen)).numpy()[T][:, :3]
  mine = ours.scores(graph.with_incoming(), jnp.asarray(VISIBLE))
  np.testing.assert_allclose(mine, theirs, atol=1e-5)
