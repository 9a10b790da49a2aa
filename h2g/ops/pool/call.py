"""What every implementation of pooling returns, and what they share."""

from typing import NamedTuple

from jax import Array
import jax.numpy as jnp


class PoolOut(NamedTuple):
  """Result of `multi_query_pool`.

  out: [B, E] pooled vectors.
  weights: [B, Q, N] float32, the softmax map of each query.
  """

  out: Array
  weights: Array


def own_slices(mean: Array, values: Array, dtype) -> Array:
  """[B, E] in `dtype`: mean [B, Q, D] times the query's own slice of the values [D, E].

  Sums over tokens commute with the projection, so that no token is projected.
  """
  num_queries, dim = mean.shape[1:]
  slices = values.reshape(dim, num_queries, -1)
  out = jnp.einsum("bqd,dqe->bqe", mean, slices, preferred_element_type=dtype)
  return out.reshape(len(mean), -1)
