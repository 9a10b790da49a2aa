"""Frequency-adaptive propagation: edges with learned signs."""

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.graph import HeteroGraph
from h2g.nn.conv.gat import edge_scores
from h2g.nn.dropout import dropout
from h2g.ops.edge import edge_sum

INIT = jax.nn.initializers.variance_scaling(2.0, "fan_avg", "normal")


class FAConv(nnx.Module):
  """h'_v = eps h0_v + sum_{u -> v} g_uv / sqrt(d_u d_v) h_u, g_uv = tanh(<a, h_u> + <a', h_v>).

  d is the in-degree, at least 1; g in (-1, 1) lets low and high frequencies pass. No self loops and
  no bias in g: as in the paper; PyG's `FAConv` agrees with `add_self_loops=False`.

  Args of the constructor:
    in_dim: width G; the output has it too.
    eps: share of h0.
    dropout_rate: of the edge weights.
  Source: arXiv 2101.00797 eq. 3 and 5-6.
  """

  def __init__(self, in_dim: int, *, eps: float = 0.3, dropout_rate: float = 0.0, rngs: nnx.Rngs):
    self.sender = nnx.Param(INIT(rngs.params(), (in_dim, 1), jnp.float32))
    self.receiver = nnx.Param(INIT(rngs.params(), (in_dim, 1), jnp.float32))
    self.out_dim, self.eps, self.dropout_rate = in_dim, eps, dropout_rate

  def __call__(
    self, h: Array, graph: HeteroGraph, *, start: Array, key: Array | None = None
  ) -> Array:
    """Returns [N, G] from h and start = h0, [N, G] each."""
    gates = jnp.tanh(edge_scores(graph, h @ self.sender[...], h @ self.receiver[...]))[:, 0]
    gates = dropout(gates, self.dropout_rate, key)
    degree = jnp.diff(graph.incoming.indptr).astype(h.dtype)
    scale = jax.lax.rsqrt(jnp.maximum(degree, 1.0))[:, None]
    total = edge_sum(graph.message_rows(h * scale), graph.incoming, weights=gates)
    return self.eps * start + scale * total
