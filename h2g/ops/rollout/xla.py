"""A row of the rollout by the backward pass of attention: no array of N x N, whoever serves it."""

import jax
from jax import Array
import jax.numpy as jnp

from h2g.ops.attention import attention
from h2g.ops.tiles import accumulator_dtype


def rollout_row(q: Array, k: Array, row: int, residual: float) -> Array:
  """See `h2g.ops.rollout`."""
  q, k = (x.astype(accumulator_dtype(x)) for x in jax.lax.stop_gradient((q, k)))
  layers, batch, tokens, heads, _ = q.shape
  values = jnp.zeros((batch, tokens, heads, 1), q.dtype)
  r = jnp.zeros((batch, tokens), q.dtype).at[:, row].set(1.0)
  for layer in reversed(range(layers)):
    pull = jax.vjp(lambda v, i=layer: attention(q[i], k[i], v), values)[1]
    looked = jnp.broadcast_to(r[:, :, None, None] / heads, values.shape)
    r = residual * r + (1 - residual) * pull(looked)[0][..., 0].sum(-1)
  return r
