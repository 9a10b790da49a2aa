"""The definition of multi-query pooling."""

import jax
from jax import Array
import jax.numpy as jnp

from h2g.ops.pool.call import PoolOut
from h2g.ops.tiles import accumulator_dtype


def multi_query_pool(x: Array, queries: Array, values: Array, mask, scale: float) -> PoolOut:
  """As the equation reads, in float32 (float64 for float64)."""
  dtype = accumulator_dtype(x)
  x, queries, values = x.astype(dtype), queries.astype(dtype), values.astype(dtype)
  b, n, _ = x.shape
  scores = scale * jnp.einsum("bnd,qd->bqn", x, queries)
  allowed = jnp.ones((b, n), bool) if mask is None else mask
  any_token = allowed.any(1)[:, None, None]
  scores = jnp.where(any_token, jnp.where(allowed[:, None], scores, -jnp.inf), 0.0)
  weights = jnp.where(any_token, jax.nn.softmax(scores, axis=-1), 0.0)
  sliced = (x @ values).reshape(b, n, len(queries), -1)
  return PoolOut(jnp.einsum("bqn,bnqe->bqe", weights, sliced).reshape(b, -1), weights)
