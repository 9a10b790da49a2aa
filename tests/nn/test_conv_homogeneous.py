"""Operators on the homogenised graph against dense matrices, and against PyG where it has them."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from h2g.graph import padding
from h2g.nn import conv
from tests.models.graphs import adjacency
from tests.models.graphs import random_graph

WIDTH = 6
GRAPH = random_graph(3, num_edges=25).with_incoming()
A = adjacency(GRAPH)  # [receiver, sender], float64, parallel edges counted
N = len(A)
H = np.random.default_rng(0).normal(size=(N, WIDTH)).astype(np.float32)
relu = functools.partial(np.maximum, 0.0)


def made(factory, **settings):
  """An operator whose every parameter, zero biases too, is random."""
  module = factory(WIDTH, **settings, rngs=nnx.Rngs(0))
  rng = np.random.default_rng(1)
  graph, state = nnx.split(module)
  state = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape, scale=0.5), x.dtype), state)
  return nnx.merge(graph, state)


def run(module, graph=GRAPH, h=H, **arguments):
  return np.asarray(
    jax.jit(lambda m, h, g, a: m(h, g, **a))(module, jnp.asarray(h), graph, arguments)
  )


def value(parameter):
  return np.asarray(parameter[...], np.float64)


def symmetric(self_loops=True):
  with_loops = A + np.eye(N) if self_loops else A
  degree = with_loops.sum(1)
  scale = np.where(degree > 0, 1 / np.sqrt(np.maximum(degree, 1)), 0)
  return scale[:, None] * with_loops * scale[None, :]


def softmax(x, axis=-1):
  x = np.exp(x - x.max(axis, keepdims=True))
  return x / x.sum(axis, keepdims=True)


def dense_gcn(m):
  return symmetric() @ H @ value(m.linear.kernel) + value(m.bias)


def dense_gcn_bias_first(m):
  return symmetric() @ (H @ value(m.linear.kernel) + value(m.linear.bias))


def dense_sage(m):
  mean = A @ H / np.maximum(A.sum(1, keepdims=True), 1)
  return mean @ value(m.neighbours.kernel) + value(m.neighbours.bias) + H @ value(m.own.kernel)


def dense_gat(m):
  heads, counts = m.num_heads, A + np.eye(N)
  z = (H @ value(m.linear.kernel)).reshape(N, heads, -1)
  out = []
  for head in range(heads):
    s = (z[:, head] @ value(m.receiver)[head])[:, None] + z[:, head] @ value(m.sender)[head]
    s = np.exp(np.where(s > 0, s, m.slope * s))
    out.append(counts * s / (counts * s).sum(1, keepdims=True) @ z[:, head])
  out = np.concatenate(out, 1) if m.concat else np.mean(out, 0)
  return out + value(m.bias)


def dense_gin(m):
  x = ((1 + m.eps) * H + A @ H) @ value(m.up.kernel) + value(m.up.bias)
  x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
  x = relu(x * value(m.norm.scale) + value(m.norm.bias))
  return x @ value(m.down.kernel) + value(m.down.bias)


def dense_mixhop(m):
  parts = np.split(value(m.linear.kernel), m.out_dim // m.power_dim, axis=1)
  powers = [np.linalg.matrix_power(symmetric(), k) @ H @ w for k, w in enumerate(parts)]
  return np.concatenate(powers, 1) + value(m.bias)


def dense_acm(m):
  low, high, own = np.split(value(m.linear.kernel), 3, axis=1)
  r = (A + np.eye(N)) / (A.sum(1, keepdims=True) + 1)
  channels = [relu(r @ H @ low), relu((np.eye(N) - r) @ H @ high), relu(H @ own)]
  scores = np.stack([x @ w for x, w in zip(channels, value(m.score))], 1)
  weights = softmax(1 / (1 + np.exp(-scores)) @ value(m.mix) / 3)
  return 3 * sum(weights[:, [c]] * x for c, x in enumerate(channels))


def dense_fa(m):
  gates = np.tanh((H @ value(m.receiver)) + (H @ value(m.sender)).T)
  degree = np.maximum(A.sum(1), 1)
  return m.eps * H[::-1] + A * gates / np.sqrt(np.outer(degree, degree)) @ H


CASES = {
  "gcn": (conv.GCNConv, dict(out_dim=4), dense_gcn),
  "gcn_bias_first": (conv.GCNConv, dict(out_dim=4, bias_first=True), dense_gcn_bias_first),
  "sage": (conv.SAGEConv, dict(out_dim=4), dense_sage),
  "gat": (conv.GATConv, dict(head_dim=3, num_heads=2), dense_gat),
  "gat_mean": (conv.GATConv, dict(head_dim=3, num_heads=2, concat=False), dense_gat),
  "gin": (conv.GINConv, dict(out_dim=4, eps=0.1), dense_gin),
  "mixhop": (conv.MixHopConv, dict(power_dim=3, max_power=2), dense_mixhop),
  "acm": (conv.ACMConv, dict(out_dim=4), dense_acm),
  "fa": (conv.FAConv, dict(eps=0.2), dense_fa),
}


def others(name):
  return dict(start=jnp.asarray(H[::-1])) if name == "fa" else {}


@pytest.mark.few(5)
@pytest.mark.parametrize("name", CASES)
def test_operator_equals_its_dense_form_whatever_stands_in_the_padding(name):
  factory, settings, dense = CASES[name]
  module = made(factory, **settings)
  padded = padding.pad(GRAPH, {"author": 9}, {name: 40 for name in GRAPH.edges})
  poison = lambda x: jnp.full((N + 2, WIDTH), jnp.nan).at[:N].set(x)
  more = {field: poison(x) for field, x in others(name).items()}

  @jax.jit
  def out_and_gradient(module, rows, graph):
    def loss(module):
      out = module(rows, graph, **more)[:N]
      return jnp.sum(out**2), out

    return jax.grad(loss, has_aux=True)(module)

  expected = dense(module)
  grads, out = out_and_gradient(module, poison(H), padded)
  assert out.shape == expected.shape == (N, module.out_dim)
  np.testing.assert_allclose(out, expected, atol=2e-5, rtol=2e-5)
  grads, _ = out_and_gradient(module, jnp.nan_to_num(poison(H)), padded)
  assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(grads))


def test_adjacency_map_reads_rows_of_the_whole_graph():
  module = conv.AdjacencyMap(GRAPH.schema, 4, num_nodes=GRAPH.num_nodes, rngs=nnx.Rngs(0))
  table = np.concatenate([value(module.tables[name]) for name in GRAPH.schema.node_types])
  np.testing.assert_allclose(jax.jit(module)(GRAPH), A @ table, atol=1e-5)


# PyG, with the same weights.


def pyg_case(name, nn, torch):
  """(operator of ours, operator of theirs with our weights)."""
  factory, settings, _ = CASES[name]
  ours = made(factory, **settings)
  put = lambda x: torch.nn.Parameter(torch.tensor(np.array(x, np.float32)))
  if name == "gcn":
    theirs = nn.GCNConv(WIDTH, 4)
    theirs.lin.weight, theirs.bias = put(value(ours.linear.kernel).T), put(value(ours.bias))
  elif name == "sage":
    theirs = nn.SAGEConv(WIDTH, 4)
    theirs.lin_l.weight = put(value(ours.neighbours.kernel).T)
    theirs.lin_l.bias = put(value(ours.neighbours.bias))
    theirs.lin_r.weight = put(value(ours.own.kernel).T)
  elif name in ("gat", "gat_mean"):
    theirs = nn.GATConv(WIDTH, 3, heads=2, concat=ours.concat)
    theirs.lin.weight, theirs.bias = put(value(ours.linear.kernel).T), put(value(ours.bias))
    theirs.att_src, theirs.att_dst = put(value(ours.sender)[None]), put(value(ours.receiver)[None])
  elif name == "gin":
    norm = torch.nn.LayerNorm(4, eps=1e-6)
    up, down = torch.nn.Linear(WIDTH, 4), torch.nn.Linear(4, 4)
    theirs = nn.GINConv(torch.nn.Sequential(up, norm, torch.nn.ReLU(), down), eps=0.1)
    up.weight, up.bias = put(value(ours.up.kernel).T), put(value(ours.up.bias))
    norm.weight, norm.bias = put(value(ours.norm.scale)), put(value(ours.norm.bias))
    down.weight, down.bias = put(value(ours.down.kernel).T), put(value(ours.down.bias))
  elif name == "mixhop":
    theirs = nn.MixHopConv(WIDTH, 3, powers=[0, 1, 2])
    for lin, weight in zip(theirs.lins, np.split(value(ours.linear.kernel), 3, axis=1)):
      lin.weight = put(weight.T)
    theirs.bias = put(value(ours.bias))
  elif name == "fa":
    theirs = nn.FAConv(WIDTH, eps=0.2, add_self_loops=False)
    theirs.att_l.weight = put(value(ours.sender).T)
    theirs.att_r.weight = put(value(ours.receiver).T)
  return ours, theirs


@pytest.mark.parametrize("name", ["gcn", "sage", "gat", "gat_mean", "gin", "mixhop", "fa"])
def test_operator_equals_pyg(name):
  reason = "PyTorch Geometric is not installed (extra [pyg])"
  torch = pytest.importorskip("torch", reason=reason)
  nn = pytest.importorskip("torch_geometric.nn", reason=reason)
  graph = without_self_edges(GRAPH)
  receivers, senders = np.nonzero(adjacency(graph))
  counts = adjacency(graph)[receivers, senders].astype(int)
  edges = torch.tensor(np.repeat(np.stack([senders, receivers]), counts, axis=1))
  ours, theirs = pyg_case(name, nn, torch)
  x = torch.tensor(H)
  more = (x.flip(0),) if name == "fa" else ()
  expected = theirs(x, *more, edges).detach().numpy()
  np.testing.assert_allclose(run(ours, graph, **others(name)), expected, atol=2e-5, rtol=2e-5)


def without_self_edges(graph):
  """Edges from a node to itself are self loops to PyG, and what receives nothing sends nothing."""
  name = ("paper", "cites", "paper")
  senders, receivers = graph._given_edges()[name]
  keep = senders != receivers
  graph = graph.with_edges(name, senders[keep], receivers[keep])
  return graph.with_reverses().with_incoming()
