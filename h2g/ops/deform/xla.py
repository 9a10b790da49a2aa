"""Sampling between pixels by gathering the four around each point.

Plan. One gather of rows of C numbers per corner, weighted; corners outside the image weigh nothing.
4 B P C reads instead of the B P H W C of the definition. The gradient by x is a scatter of the same
rows.
"""

from jax import Array
import jax.numpy as jnp


def bilinear(x: Array, points: Array) -> Array:
  """See `h2g.ops.deform.bilinear`."""
  b, height, width, c = x.shape
  flat = x.reshape(b, height * width, c)
  corner = jnp.floor(points)
  part = points - corner
  corner = corner.astype(jnp.int32)
  total = None
  for down in (0, 1):
    for right in (0, 1):
      i, j = corner[..., 0] + down, corner[..., 1] + right
      inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
      weight = (part[..., 0] if down else 1 - part[..., 0]) * (
        part[..., 1] if right else 1 - part[..., 1]
      )
      weight = jnp.where(inside, weight, 0)
      at = i.clip(0, height - 1) * width + j.clip(0, width - 1)
      rows = jnp.take_along_axis(flat, at[..., None], axis=1).astype(points.dtype)
      value = rows * weight[..., None]
      total = value if total is None else total + value
  return total
