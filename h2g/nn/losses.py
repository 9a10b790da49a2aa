"""Losses of metric learning, on distances."""

import jax
from jax import Array
import jax.numpy as jnp


def triplet_loss(near: Array, far: Array, margin: float | None = None) -> Array:
  """[...] max(0, margin + near - far), or the soft margin log(1 + exp(near - far)) where None.

  Args:
    near: [...] distance of an anchor to a positive.
    far: [...] its distance to a negative.
    margin: in units of the distance.
  Source: arXiv 1703.07737 sec. 2.
  """
  if margin is None:
    return jax.nn.softplus(near - far)
  return jax.nn.relu(margin + near - far)


def hardest(x: Array, labels: Array) -> tuple[Array, Array]:
  """(near, far) [B]: the farthest of the same label, the nearest of another, for every anchor.

  Args:
    x: [B, E] float; the distance is Euclidean.
    labels: [B] int32; an anchor alone with its label is its own positive.
  Source: arXiv 1703.07737 eq. 5 (batch hard).
  """
  square = jnp.sum((x[:, None] - x[None]) ** 2, axis=-1)
  distance = jnp.sqrt(jnp.maximum(square, 1e-12))  # a gradient without NaN at zero
  same = labels[:, None] == labels[None]
  near = jnp.where(same, distance, 0.0).max(1)
  return near, jnp.where(same, jnp.inf, distance).min(1)
