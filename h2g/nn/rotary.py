"""Positions as rotations of queries and keys, and the norm that goes with them."""

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp


def rotary(x: Array, positions: Array, *, base: float = 10_000.0) -> Array:
  """Rotates pairs of features by position: attention then sees differences of positions only.

    (y_i, y_{i+D/2}) = R(p / base^(2i/D)) (x_i, x_{i+D/2}),  i = 0 .. D/2 - 1

  Axes: B batch, T positions, H heads, D head width (even).

  Args:
    x: [B, T, H, D] float.
    positions: [T] int.
  Returns:
    [B, T, H, D] like x; angles in float32.
  Source: arXiv 2104.09864 eq. 34, halves paired as in GPT-NeoX.
  """
  half = x.shape[-1] // 2
  rates = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angles = positions.astype(jnp.float32)[:, None] * rates[None, :]
  cos, sin = jnp.cos(angles)[None, :, None, :], jnp.sin(angles)[None, :, None, :]
  first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
  turned = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)


class RMSNorm(nnx.Module):
  """y = x / sqrt(mean(x^2) + epsilon) * scale; statistics in float32.

  Source: arXiv 1910.07467 eq. 4.
  """

  def __init__(self, dim: int, *, epsilon: float = 1e-6, rngs: nnx.Rngs):
    del rngs  # nothing random here; taken so that modules are built alike
    self.scale = nnx.Param(jnp.ones(dim))
    self.epsilon = epsilon

  def __call__(self, x: Array) -> Array:
    h = x.astype(jnp.float32)
    h = h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + self.epsilon)
    scale = self.scale[...].astype(jnp.float32)
    return (h * jnp.expand_dims(scale, range(h.ndim - 1))).astype(x.dtype)
