"""GPR-GNN: APPNP whose mixture of depths is learned."""

from typing import Any

from flax import nnx
from jax import Array
import jax.numpy as jnp

from h2g.graph import HeteroGraph
from h2g.graph import Schema
from h2g.models.appnp import APPNP
from h2g.nn.conv import propagate


class GPRGNN(APPNP):
  """Z = sum_k gamma_k S^k MLP(x), gamma learned; at first that of `APPNP`. logits = Z + b.

  gamma_k = alpha (1 - alpha)^k, gamma_K = (1 - alpha)^K. The H2GB code instead starts from gamma =
  (0, 1, 0, ...); the paper's default is followed.

  Args of the constructor: those of `APPNP`.
  Source: arXiv 2006.07988 eq. 1 and section 3.
  """

  def __init__(
    self,
    schema: Schema,
    *,
    num_steps: int = 10,
    alpha: float = 0.1,
    rngs: nnx.Rngs,
    **options: Any,
  ):
    super().__init__(schema, num_steps=num_steps, alpha=alpha, rngs=rngs, **options)
    weights = alpha * (1 - alpha) ** jnp.arange(num_steps + 1.0)
    self.gamma = nnx.Param(weights.at[-1].set((1 - alpha) ** num_steps))

  def mix(self, start: Array, graph: HeteroGraph) -> Array:
    """Z from MLP(x), [N, num_classes]."""
    gamma, z = self.gamma[...], start
    total = gamma[0] * z
    for k in range(1, gamma.shape[0]):
      z = propagate(z, graph)
      total = total + gamma[k] * z
    return total
