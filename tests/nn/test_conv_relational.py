"""Operators that tell relations apart against dense matrices, and against PyG where it has them."""

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
relu = functools.partial(np.maximum, 0.0)


def without_self_edges(graph):
  """Edges from a node to itself are self loops to PyG."""
  name = ("paper", "cites", "paper")
  senders, receivers = graph._given_edges()[name]
  keep = senders != receivers
  return graph.with_edges(name, senders[keep], receivers[keep])


GRAPH = without_self_edges(random_graph(3, num_edges=25)).with_reverses().with_incoming()
SCHEMA = GRAPH.schema
N = GRAPH.node_offsets[-1]
TYPE = np.repeat([0, 1], np.diff(GRAPH.node_offsets))
ROWS = {name: slice(*GRAPH.rows(name)) for name in SCHEMA.node_types}
PARTS = [adjacency(GRAPH, [name]) for name in SCHEMA.edge_types]  # [receiver, sender] each
H = np.random.default_rng(0).normal(size=(N, WIDTH)).astype(np.float32)


def made(factory, **settings):
  """An operator whose every parameter, zero biases too, is random."""
  module = factory(WIDTH, schema=SCHEMA, **settings, rngs=nnx.Rngs(0))
  rng = np.random.default_rng(1)
  graph, state = nnx.split(module)
  state = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape, scale=0.5), x.dtype), state)
  return nnx.merge(graph, state)


def value(parameter):
  return np.asarray(parameter[...], np.float64)


def leaky(x, slope):
  return np.where(x > 0, x, slope * x)


def attended(counts, scores, z):
  """softmax over each row's edges of scores [receiver, sender], times z; zeros without edges."""
  weights = counts * np.exp(scores)
  total = weights.sum(1, keepdims=True)
  return weights / np.where(total > 0, total, 1) @ z


def loops(name):
  """The identity on the nodes of a relation within one type, else zeros."""
  return np.diag((SCHEMA.node_types.index(name[0]) == TYPE) * (name[0] == name[2]))


def dense_rgcn(m):
  own, bias = value(m.own.kernel), value(m.own.bias)
  at = TYPE if len(own) > 1 else 0 * TYPE
  out = np.einsum("ng,ngf->nf", H, own[at]) + bias[at]
  for a, w in zip(PARTS, value(m.kernel)):
    out += a / np.maximum(a.sum(1, keepdims=True), 1) @ H @ w
  return out


def dense_rgat(m):
  kernel, sender, receiver = value(m.kernel), value(m.sender), value(m.receiver)
  heads = []
  for k in range(kernel.shape[2]):
    out = 0
    for r, (name, a) in enumerate(zip(SCHEMA.edge_types, PARTS)):
      z = H @ kernel[r, :, k]
      s = (z @ receiver[r, k])[:, None] + z @ sender[r, k]
      out = out + attended(a + loops(name), leaky(s, m.slope), z)
    heads.append(out)
  out = np.concatenate(heads, 1) if m.concat else np.mean(heads, 0)
  return out + value(m.bias)[TYPE]


def dense_shgn(m):
  heads, edge = m.num_heads, []
  for e in value(m.edge):
    edge.append(((e @ value(m.edge_kernel)).reshape(heads, -1) * value(m.edge_score)).sum(1))
  z = (H @ value(m.kernel)).reshape(N, heads, -1)
  outs = []
  for k in range(heads):
    base = (z[:, k] @ value(m.receiver)[k])[:, None] + z[:, k] @ value(m.sender)[k]
    exp = [a * np.exp(leaky(base + edge[r][k], m.slope)) for r, a in enumerate([*PARTS, np.eye(N)])]
    total = sum(exp).sum(1, keepdims=True)
    # The layer before gave every edge 0.7, and every node itself 0.3.
    kept = sum(PARTS) * 0.7 + np.eye(N) * 0.3
    outs.append(((1 - m.beta) * sum(exp) / total + m.beta * kept) @ z[:, k])
  return np.concatenate(outs, 1) + H @ value(m.residual)


def dense_han(m):
  z = np.einsum("ng,ngf->nf", H, value(m.linear.kernel)[TYPE]) + value(m.linear.bias)[TYPE]
  z = z.reshape(N, m.num_heads, -1)
  act = relu if m.activation is jax.nn.relu else lambda x: np.where(x > 0, x, np.exp(x) - 1)
  out = np.zeros((N, m.out_dim))
  for name, rows in ROWS.items():
    found = []
    for r, (edge_type, a) in enumerate(zip(SCHEMA.edge_types, PARTS)):
      if edge_type[2] != name:
        continue
      heads = []
      for k in range(m.num_heads):
        s = (z[:, k] @ value(m.receiver)[r, k])[:, None] + z[:, k] @ value(m.sender)[r, k]
        counts = a + loops(edge_type) if m.self_loops else a
        heads.append(attended(counts, leaky(s, m.slope), z[:, k])[rows])
      found.append(act(np.concatenate(heads, 1)))
    kernel, bias = value(m.semantic.kernel), value(m.semantic.bias)
    w = np.exp([(np.tanh(x @ kernel + bias) @ value(m.query)).mean() for x in found])
    out[rows] = sum(share * x for share, x in zip(w / w.sum(), found))
  return out


CASES = {
  "rgcn": (conv.RGCNConv, dict(out_dim=4), dense_rgcn),
  "rgraphsage": (conv.RGCNConv, dict(out_dim=4, typed=True), dense_rgcn),
  "rgat": (conv.RGATConv, dict(head_dim=3, num_heads=2), dense_rgat),
  "rgat_mean": (conv.RGATConv, dict(head_dim=3, num_heads=2, concat=False), dense_rgat),
  "shgn": (
    conv.SHGNConv,
    dict(head_dim=3, num_heads=2, edge_dim=4, beta=0.3, residual=True),
    dense_shgn,
  ),
  "han": (conv.HANConv, dict(out_dim=4, num_heads=2), dense_han),
  "han_pyg": (
    conv.HANConv,
    dict(out_dim=4, num_heads=2, self_loops=False, activation=jax.nn.relu),
    dense_han,
  ),
}


def called(name, module, rows, graph):
  if name != "shgn":
    return module(rows, graph)
  p = jnp.full((graph.incoming.senders.shape[0], 2), 0.7), jnp.full((len(rows), 2), 0.3)
  return module(rows, graph, before=p)[0]


@pytest.mark.few(2)
@pytest.mark.parametrize("name", CASES)
def test_operator_equals_its_dense_form_whatever_stands_in_the_padding(name):
  factory, settings, dense = CASES[name]
  module = made(factory, **settings)
  padded = padding.pad(
    GRAPH, {"paper": 15, "author": 9}, {name: 40 for name in GRAPH.schema.edge_types}
  )
  spread = lambda x, fill: jnp.asarray(np.insert(x, [13, 13, 20, 20], fill, axis=0))
  real = np.asarray(padded.row_mask)

  @jax.jit
  def out_and_gradient(module, rows, graph):
    def loss(module):
      out = called(name, module, rows, graph)
      return jnp.sum(jnp.where(real[:, None], out, 0.0) ** 2), out

    return jax.grad(loss, has_aux=True)(module)

  expected = dense(module)
  _, out = out_and_gradient(module, spread(H, np.nan), padded)
  assert out[real].shape == expected.shape == (N, module.out_dim)
  np.testing.assert_allclose(out[real], expected, atol=2e-5, rtol=2e-5)
  grads, _ = out_and_gradient(module, spread(H, 0), padded)
  assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(grads))


# PyG, with the same weights.


def pyg_rows(name, ours, nn, torch):
  """What PyG makes of the graph, {node type: rows}."""
  put = lambda x: torch.nn.Parameter(torch.tensor(np.array(x, np.float32)))
  x = {name: torch.tensor(H[rows]) for name, rows in ROWS.items()}
  edges = {}
  for edge_type in SCHEMA.edge_types:
    found = GRAPH.edges[edge_type]
    ends = np.stack([found.senders, found.receivers])[:, : int(found.indptr[-1])]
    edges[edge_type] = torch.tensor(ends.astype(np.int64))
  if name == "rgcn":
    theirs = nn.RGCNConv(WIDTH, 4, len(SCHEMA.edge_types))
    theirs.weight, theirs.bias = put(value(ours.kernel)), put(value(ours.own.bias)[0])
    theirs.root = put(value(ours.own.kernel)[0])
    begin = {name: rows.start for name, rows in ROWS.items()}
    shifted = [e + torch.tensor([[begin[s]], [begin[t]]]) for (s, _, t), e in edges.items()]
    kinds = torch.tensor(np.repeat(np.arange(len(edges)), [e.shape[1] for e in edges.values()]))
    out = theirs(torch.tensor(H), torch.cat(shifted, 1), kinds)
    return {name: out[rows] for name, rows in ROWS.items()}
  if name == "han_pyg":
    theirs = nn.HANConv(WIDTH, 4, (list(ROWS), list(SCHEMA.edge_types)), heads=2)
    for t, node_type in enumerate(ROWS):
      theirs.proj[node_type].weight = put(value(ours.linear.kernel)[t].T)
      theirs.proj[node_type].bias = put(value(ours.linear.bias)[t])
    for r, edge_type in enumerate(SCHEMA.edge_types):
      theirs.lin_src["__".join(edge_type)] = put(value(ours.sender)[r][None])
      theirs.lin_dst["__".join(edge_type)] = put(value(ours.receiver)[r][None])
    theirs.q = put(value(ours.query)[None])
    theirs.k_lin.weight = put(value(ours.semantic.kernel).T)
    theirs.k_lin.bias = put(value(ours.semantic.bias))
    return theirs(x, edges)
  convs = {}
  for r, (source, middle, target) in enumerate(SCHEMA.edge_types):
    t = SCHEMA.node_types.index(target)
    several = sum(name[2] == target for name in SCHEMA.edge_types)
    if name == "rgraphsage":
      one = nn.SAGEConv(WIDTH, 4)
      one.lin_l.weight = put(value(ours.kernel)[r].T)
      one.lin_l.bias = put(value(ours.own.bias)[t] / several)
      one.lin_r.weight = put(value(ours.own.kernel)[t].T / several)
    else:
      one = nn.GATConv(WIDTH, 3, heads=2, concat=ours.concat, add_self_loops=source == target)
      one.lin.weight = put(value(ours.kernel)[r].reshape(WIDTH, -1).T)
      one.att_src, one.att_dst = (
        put(value(ours.sender)[r][None]),
        put(value(ours.receiver)[r][None]),
      )
      one.bias = put(value(ours.bias)[t] / several)
    convs[source, middle, target] = one
  return nn.HeteroConv(convs, aggr="sum")(x, edges)


@pytest.mark.parametrize("name", ["rgcn", "rgraphsage", "rgat", "rgat_mean", "han_pyg"])
def test_operator_equals_pyg(name):
  reason = "PyTorch Geometric is not installed (extra [pyg])"
  torch = pytest.importorskip("torch", reason=reason)
  nn = pytest.importorskip("torch_geometric.nn", reason=reason)
  factory, settings, _ = CASES[name]
  ours = made(factory, **settings)
  out = np.asarray(jax.jit(ours)(jnp.asarray(H), GRAPH))
  expected = pyg_rows(name, ours, nn, torch)
  assert set(expected) == set(ROWS)
  for node_type, rows in expected.items():
    np.testing.assert_allclose(
      out[ROWS[node_type]], rows.detach().numpy(), atol=2e-5, rtol=2e-5, err_msg=node_type
    )
