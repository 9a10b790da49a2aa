"""Sampling between pixels by gathering the 2 x 2 window around each point.

Plan. One gather of windows of 4 C numbers, weighted: 4 B P C reads instead of the B P H W C of the
definition. The image has a border of zeros, so that windows at the edge need no case. The gradient
by x is one scatter of windows: on CPUs, whose scatters go index by index, four times faster than a
gather per corner.
"""

import jax
from jax import Array
from jax import lax
import jax.numpy as jnp


def bilinear(x: Array, points: Array) -> Array:
  """See `h2g.ops.deform.bilinear`."""
  _, height, width, c = x.shape
  padded = jnp.pad(x, ((0, 0), (1, 2), (1, 2), (0, 0)))
  limit = jnp.asarray([height, width], points.dtype).reshape(1, 1, 2)
  points = points.clip(-1, limit)  # further out is zero as well
  corner = jnp.floor(points)
  part = points - corner
  corner = corner.astype(jnp.int32) + 1

  def window(image: Array, at: Array) -> Array:
    return lax.dynamic_slice(image, (at[0], at[1], jnp.int32(0)), (2, 2, c))

  windows = jax.vmap(jax.vmap(window, (None, 0)))(padded, corner).astype(points.dtype)
  down, right = part[..., :1], part[..., 1:]
  rows = windows[:, :, 0] * (1 - down)[..., None] + windows[:, :, 1] * down[..., None]
  return rows[:, :, 0] * (1 - right) + rows[:, :, 1] * right
