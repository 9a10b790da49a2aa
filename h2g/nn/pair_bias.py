"""What a pair of nodes adds to its attention logit: masks and biases for `FullAttention`.

Each is built `(schema, num_heads, rngs=...)` and called with a graph; it returns [1, H or 1, N, N],
rows the receiver of attention, columns the sender; -inf masks. Distances are counted along directed
edges, all relations as one. They hold N^2 numbers, hence at most MAX_NODES nodes.
"""

from flax import nnx
from jax import Array
import jax.numpy as jnp

from h2g.errors import InputError
from h2g.graph import HeteroGraph
from h2g.graph import Schema

MAX_NODES = 8192


def adjacency(graph: HeteroGraph) -> Array:
  """[N, N] float32: how many edges lead from column to row; padding leads nowhere."""
  total = graph.node_offsets[-1]
  if total > MAX_NODES:
    raise InputError(
      f"a bias of all pairs needs at most {MAX_NODES} nodes, the graph has {total}: sample "
      "it (config.sample.method), or attend along edges"
    )
  index = graph.incoming
  nodes = graph.message_rows(jnp.arange(total))[index.senders]
  real = jnp.arange(index.senders.shape[0]) < index.indptr[-1]
  return jnp.zeros((total, total)).at[index.receivers, nodes].add(real.astype(jnp.float32))


def hop_distance(graph: HeteroGraph, hops: int) -> Array:
  """[N, N] int32: the fewest edges that lead from column to row; hops + 1 where it takes more."""
  step = (adjacency(graph) > 0).astype(jnp.float32)
  reached = jnp.eye(step.shape[0])
  distance = jnp.where(reached > 0, 0, hops + 1)
  for hop in range(1, hops + 1):
    reached = jnp.minimum(step @ reached, 1.0)
    distance = jnp.minimum(distance, jnp.where(reached > 0, hop, hops + 1))
  return distance


class EdgeMask(nnx.Module):
  """0 where an edge leads from column to row, -inf elsewhere (H2GB `Edge`)."""

  def __init__(self, schema: Schema, num_heads: int, *, rngs: nnx.Rngs):
    del schema, num_heads, rngs

  def __call__(self, graph: HeteroGraph) -> Array:
    return jnp.where(adjacency(graph) > 0, 0.0, -jnp.inf)[None, None]


class HopBias(nnx.Module):
  """b[d(u, v), h], d the distance, at first 0.

  Args of the constructor:
    hops: distances 0..hops have their own b.
    mask: pairs further apart are masked (H2GB `kHop`); otherwise they share one more b (the
      spatial encoding of Graphormer, H2GB `Hetero_SDAB`).

  The official k-hop mask is over walks of exactly 1..k edges with one b per hop and no heads, left
  without initial values.
  Source: arXiv 2407.10916 section 4; arXiv 2106.05234 eq. 6.
  """

  def __init__(
    self, schema: Schema, num_heads: int, *, hops: int = 2, mask: bool = True, rngs: nnx.Rngs
  ):
    del schema, rngs
    self.bias = nnx.Param(jnp.zeros((hops + 1 + (not mask), num_heads)))
    self.hops, self.mask = hops, mask

  def __call__(self, graph: HeteroGraph) -> Array:
    distance, bias = hop_distance(graph, self.hops), self.bias[...]
    # One distance after the other: no gather of N x N x H from a table.
    out = jnp.zeros((bias.shape[1], *distance.shape))
    for d in range(bias.shape[0]):
      out = jnp.where(distance[None] == d, bias[d][:, None, None], out)
    if self.mask:
      out = jnp.where(distance[None] > self.hops, -jnp.inf, out)
    return out[None]


class ProximityBias(nnx.Module):
  """sum_m b[m, h] (S^m)[v, u], m = 0..orders - 1, b at first 0; S as in `GCNConv`.

  Source: arXiv 2110.13094 eq. 5-6 (proximity-enhanced attention).
  """

  def __init__(self, schema: Schema, num_heads: int, *, orders: int = 3, rngs: nnx.Rngs):
    del schema, rngs
    self.bias = nnx.Param(jnp.zeros((orders, num_heads)))

  def __call__(self, graph: HeteroGraph) -> Array:
    step = adjacency(graph)
    step = step + jnp.eye(step.shape[0])
    scale = step.sum(1) ** -0.5
    step = scale[:, None] * step * scale[None, :]
    power, out = jnp.eye(step.shape[0]), 0.0
    for weights in self.bias[...]:
      out = out + weights[:, None, None] * power[None]
      power = step @ power
    return out[None]
