"""Contrastive prediction: tell the true target from others drawn at random."""

from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp


class Contrast(NamedTuple):
  """loss: [N] float32 cross-entropy; top1: [N] bool, the target has the largest similarity."""

  loss: Array
  top1: Array


def info_nce(
  pred: Array,
  target: Array,
  key: Array,
  num_negatives: int = 30,
  temperature: float = 0.1,
  *,
  valid: Array | None = None,
) -> Contrast:
  """Cross-entropy of the own target among itself and targets of other rows.

    loss[n] = -log softmax_0([cos(pred[n], target[n]), cos(pred[n], target[m_k])] / temperature)

  with m_1 .. m_K uniform, with replacement, over all valid rows but n. Gradients flow into `pred`
  and the own target; negatives carry none. A negative equal to the own target (within 1e-8 + 1e-5
  of its norm) is left out.

  Args:
    pred, target: [N, D] float.
    key: PRNG key of the draw.
    num_negatives: K. temperature: positive.
    valid: [N] bool, rows that may be drawn; None for all. Where no other row is valid, the row has
      no negatives: loss 0.
  Source: arXiv 1807.03748 eq. 4; arXiv 2006.11477 eq. 3 (cosine). The official code of arXiv
    2506.20354 never draws from the last batch element; this draw is uniform.
  """
  num = len(pred)
  valid = jnp.ones(num, bool) if valid is None else valid
  order = jnp.argsort(~valid, stable=True)  # valid rows first
  rank = jnp.cumsum(valid.astype(jnp.int32)) - 1
  # A valid row skips itself; any other may draw every valid row.
  others = valid.sum(dtype=jnp.int32) - valid.astype(jnp.int32)
  uniform = jax.random.uniform(key, (num, num_negatives))
  drawn = (uniform * others[:, None].astype(uniform.dtype)).astype(jnp.int32)
  drawn = jnp.minimum(drawn, others[:, None] - 1)
  drawn = drawn + ((drawn >= rank[:, None]) & valid[:, None]).astype(jnp.int32)
  negatives = order[jnp.maximum(drawn, 0)]

  unit = lambda x: x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)
  pred, target = pred.astype(jnp.float32), target.astype(jnp.float32)
  fixed = jax.lax.stop_gradient(target)
  own = (unit(pred) * unit(target)).sum(-1)
  against = jnp.einsum("nd,nkd->nk", unit(pred), unit(fixed)[negatives])
  squares = jnp.square(fixed).sum(-1)
  apart = squares[:, None] + squares[negatives]
  apart = apart - 2 * jnp.einsum("nd,nkd->nk", fixed, fixed[negatives])
  same = jnp.sqrt(jnp.maximum(apart, 0.0)) < 1e-8 + 1e-5 * jnp.sqrt(squares)[:, None]
  against = jnp.where(same | (others == 0)[:, None], -jnp.inf, against)
  scores = jnp.concatenate([own[:, None], against], axis=1) / temperature
  loss = jax.nn.logsumexp(scores, axis=1) - scores[:, 0]
  return Contrast(loss, own > jax.lax.stop_gradient(against.max(1)))
