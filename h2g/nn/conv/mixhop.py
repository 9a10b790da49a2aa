"""MixHop: several powers of the adjacency side by side."""

from flax import nnx
from jax import Array
import jax.numpy as jnp

from h2g.graph import HeteroGraph
from h2g.nn.conv.gcn import propagate


class MixHopConv(nnx.Module):
  """h' = [h W_0 | S h W_1 | ... | S^P h W_P] + b, S as in `GCNConv`.

  Args of the constructor:
    in_dim: width read.
    power_dim: width of each part; the whole is (P + 1) power_dim wide.
    max_power: P.
  Source: arXiv 1905.00067 eq. 3. The bias is added last as in PyG's `MixHopConv`; the official code
  of H2GB propagates it.
  """

  def __init__(self, in_dim: int, *, power_dim: int, max_power: int = 2, rngs: nnx.Rngs):
    self.out_dim = (max_power + 1) * power_dim
    self.linear = nnx.Linear(in_dim, self.out_dim, use_bias=False, rngs=rngs)
    self.bias = nnx.Param(jnp.zeros(self.out_dim))
    self.power_dim = power_dim

  def __call__(self, h: Array, graph: HeteroGraph, *, key: Array | None = None) -> Array:
    """Returns [N, out_dim]; draws nothing at random."""
    del key
    # What still has to travel stands at the right; each round one part has arrived.
    rest, parts = self.linear(h), []
    while True:
      parts.append(rest[:, : self.power_dim])
      rest = rest[:, self.power_dim :]
      if not rest.shape[1]:
        return jnp.concatenate(parts, axis=1) + self.bias[...][None, :]
      rest = propagate(rest, graph)
