"""The definition of attention rollout: products of dense matrices, bottom up."""

import functools

import jax
from jax import Array
import jax.numpy as jnp

from h2g.ops.tiles import accumulator_dtype


def attention_rollout(weights: Array, residual: float) -> Array:
  """As the equation reads."""
  weights = weights.astype(accumulator_dtype(weights))
  stay = residual * jnp.eye(weights.shape[-1], dtype=weights.dtype)
  layers = stay[None, None] + (1 - residual) * weights.mean(2)
  multiply = lambda below, layer: jnp.matmul(layer, below, precision="highest")
  return functools.reduce(multiply, layers)


def rollout_row(q: Array, k: Array, row: int, residual: float) -> Array:
  """A row of the whole."""
  q, k = (x.astype(accumulator_dtype(x)) for x in jax.lax.stop_gradient((q, k)))
  logits = jnp.einsum("lbthd,lbshd->lbhts", q, k, precision="highest") * q.shape[-1] ** -0.5
  return attention_rollout(jax.nn.softmax(logits, axis=-1), residual)[:, row]
