"""Losses of metric learning, on distances: pull equal labels together, push others away."""

from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp


class Mined(NamedTuple):
  """loss: [K] float32; violated: [K] float32, share of the triplets that are within the margin."""

  loss: Array
  violated: Array


def unit(x: Array) -> Array:
  """x / |x| along the last axis; a gradient without NaN at zero."""
  return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


def cosine_distance(x: Array, y: Array) -> Array:
  """[...] 1 - <x, y> of unit vectors [..., E]."""
  return 1.0 - jnp.sum(x * y, axis=-1)


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


def mined_triplet_loss(x: Array, labels: Array, margin: float = 0.2) -> Mined:
  """`triplet_loss` of `cosine_distance` over all triplets of a batch, in each of K spaces.

  The mean of those above zero, not of all.

  Axes: B items, K spaces, E width.

  Args:
    x: [B, K, E] float, unit vectors.
    labels: [B, K] int; negative where an item has no label in a space, which leaves it out there.
    margin: m.
  Returns:
    Mined; zero in a space without a triplet.
  Source: arXiv 1703.07737 sec. 2 (batch all, mean over what is not zero).
  """
  distance = 1.0 - jnp.einsum("ake,bke->kab", x, x)
  of = labels.T
  known = (of[:, :, None] >= 0) & (of[:, None, :] >= 0)
  same = of[:, :, None] == of[:, None, :]
  positive = known & same & ~jnp.eye(len(x), dtype=bool)[None]
  # [K, anchor, positive, negative]
  value = triplet_loss(distance[:, :, :, None], distance[:, :, None, :], margin)
  valid = positive[:, :, :, None] & (known & ~same)[:, :, None, :]
  value = jnp.where(valid, value, 0.0)
  count = lambda mask: jnp.maximum(mask.sum((1, 2, 3), dtype=jnp.float32), 1.0)
  violated = (value > 0).sum((1, 2, 3), dtype=jnp.float32)
  return Mined(value.sum((1, 2, 3)) / jnp.maximum(violated, 1.0), violated / count(valid))
