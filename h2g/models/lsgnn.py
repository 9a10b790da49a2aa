"""LSGNN: low- and high-pass parts of every depth, fused per node by its local similarity."""

from collections.abc import Mapping
import functools
import itertools

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.errors import InputError
from h2g.graph import HeteroGraph
from h2g.graph import Schema
from h2g.models.baseline import Baseline
from h2g.models.homogeneous import input_map
from h2g.nn import dropout
from h2g.nn.conv import AdjacencyMap
from h2g.ops.edge import edge_sum

BLOCK = 4096  # edges at a time: no array of edges x features
INIT = jax.nn.initializers.variance_scaling(1.0, "fan_avg", "uniform", batch_axis=0)


class LSGNN(Baseline):
  """Local similarity s_v = mean_{u -> v} MLP([d_uv, d_uv^2]), d_uv = |x_u - x_v| of raw features.

  Two filters, F_L = beta I + S and F_H = (1 - beta) I - S, S = D^-1/2 A D^-1/2 with D the in-degree
  with the self loop and A without; per filter (initial residual difference connection)
    P_1 = F h,  P_k = F ((1 - gamma) h - gamma sum_{l < k} P_l),  k = 2..K
  Each of h, P_k^L, P_k^H goes through its own `num_layers` maps z <- relu(z W / |z W|). Then
    Z_k = a_k^I h + a_k^L P_k^L + a_k^H P_k^H,  (a^I, a^L, a^H)_k = MLP([s_v, s_v^2])
    logits = dropout([h | Z_1 | ... | Z_K | relu(norm(A W_A + b))], each over its norm) W + b
  h is the encoded features (official: the raw ones). The last part stands there if
  `embed_adjacency` (official: everywhere but on RCDD; layer norm for batch norm), which needs
  `num_nodes`, the nodes of the whole graph per type.
  Source: arXiv 2305.04225 eq. 6-13; the gamma of P_k as in the official code.
  """

  def __init__(
    self,
    schema: Schema,
    *,
    dim: int = 256,
    num_layers: int = 2,
    num_steps: int = 5,
    beta: float = 1.0,
    gamma: float = 0.5,
    embed_adjacency: bool = True,
    num_nodes: Mapping[str, int] | None = None,
    dropout_rate: float = 0.5,
    typed_input: bool = False,
    rngs: nnx.Rngs,
  ):
    if embed_adjacency and num_nodes is None:
      raise InputError("lsgnn embeds the adjacency: give num_nodes, or embed_adjacency=False")
    self.encoder = input_map(schema, dim, typed_input=typed_input, rngs=rngs)
    self.distance_up = nnx.Linear(2, dim, rngs=rngs)
    self.distance_down = nnx.Linear(dim, 1, rngs=rngs)
    self.share_up = nnx.Linear(2, dim, rngs=rngs)
    self.share_down = nnx.Linear(dim, 3 * num_steps, rngs=rngs)
    widths = [dim, *[2 * dim] * (num_layers - 1), dim]
    self.reduce = nnx.List(
      [
        nnx.Param(INIT(rngs.params(), (2 * num_steps + 1, *shape), jnp.float32))
        for shape in itertools.pairwise(widths)
      ]
    )
    embed = functools.partial(AdjacencyMap, schema, dim, num_nodes=num_nodes, rngs=rngs)
    self.adjacency = embed() if embed_adjacency else None
    self.adjacency_norm = nnx.LayerNorm(dim, rngs=rngs) if embed_adjacency else None
    parts = num_steps + 1 + embed_adjacency
    self.head = nnx.Linear(parts * dim, schema.num_classes, rngs=rngs)
    self.num_steps, self.beta, self.gamma = num_steps, beta, gamma
    self.dropout_rate = dropout_rate

  def logits(self, graph: HeteroGraph, key: Array | None) -> Array:
    begin, end = graph.target_rows
    h = self.encoder(graph)
    parts = [h]
    for own, sign in ((self.beta, 1.0), (1.0 - self.beta, -1.0)):
      parts += self.filtered(h, graph, own, sign)
    z = jnp.stack([part[begin:end] for part in parts])
    for weight in self.reduce:
      z = jax.nn.relu(unit(z @ weight[...]))
    similarity = self.similarity(graph)[begin:end]
    shares = jnp.concatenate([similarity, similarity**2], axis=1)
    shares = self.share_down(jax.nn.silu(self.share_up(shares)))
    shares = shares.reshape(end - begin, self.num_steps, 3).transpose(2, 1, 0)[..., None]
    low, high = jnp.split(z[1:], 2)
    fused = shares[0] * z[:1] + shares[1] * low + shares[2] * high
    parts = [z[:1], fused]
    if self.adjacency is not None:
      parts.append(jax.nn.relu(self.adjacency_norm(self.adjacency(graph)[begin:end]))[None])
    out = dropout(unit(jnp.concatenate(parts)), self.dropout_rate, key)
    return self.head(out.swapaxes(0, 1).reshape(end - begin, -1))

  def filtered(self, h: Array, graph: HeteroGraph, own: float, sign: float) -> list[Array]:
    """P_1 .. P_K of the filter own I + sign S."""
    degree = jnp.diff(graph.incoming.indptr).astype(h.dtype)[:, None] + 1.0
    scale = jax.lax.rsqrt(degree)

    def through(x):
      return own * x + sign * scale * edge_sum(graph.message_rows(x * scale), graph.incoming)

    parts, total = [through(h)], 0.0
    for _ in range(1, self.num_steps):
      total = total + parts[-1]
      parts.append(through((1.0 - self.gamma) * h - self.gamma * total))
    return parts

  def similarity(self, graph: HeteroGraph) -> Array:
    """s, [N, 1]; zero where no edge arrives."""

    def score(distance):  # recomputed backwards: a row of `dim` per edge is never kept
      pair = jnp.stack([distance, distance**2], axis=1)
      return self.distance_down(jax.nn.silu(self.distance_up(pair)))[:, 0]

    distance = edge_distance(graph)
    scores = in_blocks(jax.checkpoint(score), distance)
    ones = graph.message_rows(jnp.ones((graph.node_offsets[-1], 1)))
    return edge_sum(ones, graph.incoming, weights=scores, mean=True)


def edge_distance(graph: HeteroGraph) -> Array:
  """[E] |x_u - x_v| of every incoming edge, raw features padded with zeros to one width."""
  width = max(max(graph.schema.feature_dims), 1)
  rows = []
  for name in graph.schema.node_types:
    nodes = graph.nodes[name]
    given = jnp.zeros((nodes.ids.shape[0], 0)) if nodes.features is None else nodes.features
    rows.append(jnp.pad(given, ((0, 0), (0, width - given.shape[1]))))
  x = jnp.concatenate(rows)
  senders = graph.message_rows(jnp.arange(x.shape[0]))[graph.incoming.senders]
  length = lambda u, v: jnp.sqrt(jnp.sum((x[u] - x[v]) ** 2, axis=1))
  return in_blocks(length, senders, graph.incoming.receivers)


def in_blocks(function, *edges: Array) -> Array:
  """function(*edges) over [E] arrays, BLOCK edges at a time."""
  count = edges[0].shape[0]
  if count <= BLOCK:
    return function(*edges)
  cut = [jnp.pad(x, (0, -count % BLOCK)).reshape(-1, BLOCK) for x in edges]
  return jax.lax.map(lambda block: function(*block), tuple(cut)).reshape(-1)[:count]


def unit(x: Array) -> Array:
  """Rows over their norm; rows of zeros stay zero, and have a zero gradient."""
  square = jnp.sum(x * x, axis=-1, keepdims=True)
  some = square > 1e-24
  return jnp.where(some, x * jax.lax.rsqrt(jnp.where(some, square, 1.0)), 0.0)
