"""Graph isomorphism network."""

from flax import nnx
import jax
from jax import Array

from h2g.graph import HeteroGraph
from h2g.ops.edge import edge_sum


class GINConv(nnx.Module):
  """h'_v = MLP((1 + eps) h_v + sum_{u -> v} h_u), MLP = linear, layer norm, ReLU, linear.

  eps is fixed at 0 and the norm stands inside the MLP as in PyG's `GIN`, which the H2GB baseline
  uses; the sums of hubs need it.
  Source: arXiv 1810.00826 eq. 4.1.
  """

  def __init__(self, in_dim: int, *, out_dim: int, eps: float = 0.0, rngs: nnx.Rngs):
    self.up = nnx.Linear(in_dim, out_dim, rngs=rngs)
    self.norm = nnx.LayerNorm(out_dim, rngs=rngs)
    self.down = nnx.Linear(out_dim, out_dim, rngs=rngs)
    self.out_dim, self.eps = out_dim, eps

  def __call__(self, h: Array, graph: HeteroGraph, *, key: Array | None = None) -> Array:
    """Returns [N, out_dim]; draws nothing at random."""
    del key
    total = (1.0 + self.eps) * h + edge_sum(graph.message_rows(h), graph.incoming)
    return self.down(jax.nn.relu(self.norm(self.up(total))))
