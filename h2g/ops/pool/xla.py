"""Multi-query pooling that never projects a token.

Plan. A query only needs its own slice of the values, and sums over tokens commute with the
projection: out_j = (a_j X) W[:, slice j]. So tokens are read twice (scores, sums) and the products
are 4 B N Q D + 2 B D E flops, where projecting every token first takes 2 B N D E: less by about
E / 2Q times. The weights [B, Q, N] are a result, so they are kept.
"""

from jax import Array
import jax.numpy as jnp

from h2g.ops.pool.call import own_slices
from h2g.ops.pool.call import PoolOut
from h2g.ops.tiles import accumulator_dtype


def multi_query_pool(x: Array, queries: Array, values: Array, mask, scale: float) -> PoolOut:
  """See `h2g.ops.pool.multi_query_pool`."""
  dtype = accumulator_dtype(x)
  scaled = (queries.astype(dtype) * scale).astype(x.dtype)
  scores = jnp.einsum("qd,bnd->bqn", scaled, x, preferred_element_type=dtype)
  if mask is not None:
    scores = jnp.where(mask[:, None], scores, -jnp.inf)
  top = scores.max(-1, keepdims=True)
  exps = jnp.exp(scores - jnp.where(jnp.isfinite(top), top, 0.0))
  total = exps.sum(-1, keepdims=True)
  weights = exps / jnp.where(total > 0, total, 1.0)
  mean = jnp.einsum("bqn,bnd->bqd", weights.astype(x.dtype), x, preferred_element_type=dtype)
  return PoolOut(own_slices(mean.astype(x.dtype), values, dtype), weights)
