"""What every implementation of prototype attention takes and returns."""

from typing import NamedTuple

from jax import Array
import jax.numpy as jnp


class PrototypeOut(NamedTuple):
  """Result of `prototype_attention`.

  prototypes: [B, Q, H, D] the chosen features.
  index: [B, H, Q] int32, which they are.
  """

  prototypes: Array
  index: Array


def take(x: Array, index: Array) -> Array:
  """[B, Q, H, D]: feature index[b,h,q] of head h, from x [B, N, H, D]."""
  return jnp.take_along_axis(x, index.swapaxes(1, 2)[..., None], axis=1)


def lifted(mask: Array, when_empty: str) -> Array:
  """The mask [B, Q, N] with the rows opened that see nothing, as `when_empty` says."""
  empty = ~mask.any(2, keepdims=True)
  if when_empty == "batch":
    empty = empty.all(1, keepdims=True)
  return mask | empty
