"""What every implementation of pooling returns."""

from typing import NamedTuple

from jax import Array


class PoolOut(NamedTuple):
  """Result of `multi_query_pool`.

  out: [B, E] pooled vectors.
  weights: [B, Q, N] float32, the softmax map of each query.
  """

  out: Array
  weights: Array
