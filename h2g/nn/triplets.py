"""Losses that pull equal labels together and push others away."""

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


def triplet_loss(anchor: Array, positive: Array, negative: Array, margin: float = 0.2) -> Array:
  """[...] max(0, m + d(a, p) - d(a, n)), d(x, y) = 1 - <x, y> on unit vectors [..., E].

  Source: arXiv 2002.02814, with its margin.
  """
  near, far = jnp.sum(anchor * positive, axis=-1), jnp.sum(anchor * negative, axis=-1)
  return jax.nn.relu(margin - near + far)


def mined_triplet_loss(x: Array, labels: Array, margin: float = 0.2) -> Mined:
  """`triplet_loss` over all triplets of a batch, in each of K spaces: the mean of those above zero.

  Axes: B items, K spaces, E width.

  Args:
    x: [B, K, E] float, unit vectors.
    labels: [B, K] int; negative where an item has no label in a space, which leaves it out there.
    margin: m.
  Returns:
    Mined; zero in a space without a triplet.
  Source: arXiv 1703.07737 sec. 2 (batch all, mean over what is not zero).
  """
  similar = jnp.einsum("ake,bke->kab", x, x)
  of = labels.T
  known = (of[:, :, None] >= 0) & (of[:, None, :] >= 0)
  same = of[:, :, None] == of[:, None, :]
  positive = known & same & ~jnp.eye(len(x), dtype=bool)[None]
  value = (
    margin - similar[:, :, :, None] + similar[:, :, None, :]
  )  # [K, anchor, positive, negative]
  valid = positive[:, :, :, None] & (known & ~same)[:, :, None, :]
  value = jnp.where(valid, jax.nn.relu(value), 0.0)
  count = lambda mask: jnp.maximum(mask.sum((1, 2, 3), dtype=jnp.float32), 1.0)
  violated = (value > 0).sum((1, 2, 3), dtype=jnp.float32)
  return Mined(value.sum((1, 2, 3)) / jnp.maximum(violated, 1.0), violated / count(valid))
