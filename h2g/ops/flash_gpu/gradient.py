"""What the backward kernels share: saved rows, and a tile's weights and gradient."""

from typing import NamedTuple

from jax import Array
import jax.numpy as jnp

from h2g.ops.flash_gpu.call import LOG2E
from h2g.ops.flash_gpu.logits import Logits
from h2g.ops.flash_gpu.logits import Where


class Saved(NamedTuple):
  """What the backward kernels read beside the operands, in whole tiles.

  Attributes:
    do: [B, T, H, E] like q.
    lse: [B, H, T] float32, in base 2; +inf for rows without weights, so that theirs come out as 0.
    delta: [B, H, T] float32, sum(do * out) less the gradient of lse.
  """

  do: Array
  lse: Array
  delta: Array


def weights_and_gradient(
  logits: Logits, products: Array, d_weights: Array, rows, where: Where, masked: bool
) -> tuple[Array, Array]:
  """(weights, gradient by scale * q.k) of one tile.

  Args:
    logits: of the kernel.
    products: q.k.
    d_weights: do.v.
    rows: (lse in base 2, delta) vectors along the queries; lse is +inf for rows without weights.
    where: of the tile.
    masked: whether it is PARTIAL.
  """
  config, allowed = logits.config, logits.allowed(where) if masked else None
  slope = None
  if config.plain and logits.bias is None:
    x, factor = products, LOG2E * config.scale
    if allowed is not None:
      x = jnp.where(allowed, x * factor, -jnp.inf)
      factor = 1.0
  else:
    x, slope = logits(products, where, allowed, tangent=True)
    factor = LOG2E
  lse, delta = (where.spread(row, where.axes[0]) for row in rows)
  weights = jnp.exp2(x * factor - lse)
  gradient = weights * (d_weights - delta)
  if slope is not None:
    gradient = gradient * slope
    if allowed is not None and config.hook is not None:
      gradient = jnp.where(allowed, gradient, 0.0)
  return weights, gradient
