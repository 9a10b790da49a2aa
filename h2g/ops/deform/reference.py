"""The definition of sampling between pixels."""

from jax import Array
import jax.numpy as jnp


def bilinear(x: Array, points: Array) -> Array:
  """Every pixel times its hat: weight max(0, 1 - |y - i|) max(0, 1 - |x - j|)."""
  places = lambda size: jnp.arange(size, dtype=points.dtype)[None, None]
  hat = lambda at, size: jnp.maximum(1 - jnp.abs(at[..., None] - places(size)), 0)
  rows, columns = hat(points[..., 0], x.shape[1]), hat(points[..., 1], x.shape[2])
  return jnp.einsum("bpi,bpj,bijc->bpc", rows, columns, x.astype(points.dtype))
