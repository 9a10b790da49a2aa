"""GraphSAGE with the mean of the neighbours."""

from flax import nnx
from jax import Array

from h2g.graph import HeteroGraph
from h2g.ops.edge import edge_sum


class SAGEConv(nnx.Module):
  """h'_v = mean_{u -> v} h_u W_n + b + h_v W_s; the mean is zero where no edge arrives.

  The paper's concatenation followed by one matrix is this sum of two. No sampling of neighbours and
  no l2 normalisation of the output, as in PyG's `SAGEConv`, which the H2GB baseline uses.
  Source: arXiv 1706.02216 algorithm 1, mean aggregator.
  """

  def __init__(self, in_dim: int, *, out_dim: int, rngs: nnx.Rngs):
    self.neighbours = nnx.Linear(in_dim, out_dim, rngs=rngs)
    self.own = nnx.Linear(in_dim, out_dim, use_bias=False, rngs=rngs)
    self.out_dim = out_dim

  def __call__(self, h: Array, graph: HeteroGraph, *, key: Array | None = None) -> Array:
    """Returns [N, out_dim]; draws nothing at random."""
    del key
    mean = edge_sum(graph.message_rows(h), graph.incoming, mean=True)
    return self.neighbours(mean) + self.own(h)
