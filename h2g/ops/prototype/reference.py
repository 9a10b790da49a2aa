"""The definition of prototype attention."""

from jax import Array
import jax.numpy as jnp

from h2g.ops.tiles import accumulator_dtype


def nearest(q: Array, x: Array, mask: Array | None) -> Array:
  """[B, H, Q] int32: argmax over allowed features, the first of equals; 0 where there are none."""
  dtype = accumulator_dtype(q)
  similarity = jnp.einsum("bqhd,bnhd->bhqn", q.astype(dtype), x.astype(dtype))
  if mask is not None:
    similarity = jnp.where(mask[:, None], similarity, -jnp.inf)
  return jnp.argmax(similarity, axis=-1).astype(jnp.int32)
