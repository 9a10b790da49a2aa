"""Contrastive prediction: tell the true target from others drawn at random."""

import functools
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp

from h2g.nn.losses import unit


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


class NextSums(NamedTuple):
  """Sums over the valid tokens, float32: loss; top1; copied, top1 of the last token in place of the
  prediction; num, how many there are."""

  loss: Array
  top1: Array
  copied: Array
  num: Array


def next_in_group(
  tokens: Array, pred: Array, mask: Array, key: Array, *, each: int, **nce
) -> NextSums:
  """`info_nce` of every token from the prediction one segment before, among its group's tokens.

  Args:
    tokens: [B, T, C, D] float; each `each` rows of B are a group, of one subject.
    pred: [B, T, C, D] float; what stands at t predicts token t + 1.
    mask: [B, C] bool, channels that are there.
    key: PRNG key of the negatives.
    nce: num_negatives and temperature.
  """
  here = jnp.broadcast_to(mask[:, None], tokens.shape[:3])[:, 1:]
  groups = lambda x: x.reshape(len(tokens) // each, -1, *x.shape[3:])
  last = groups(jax.lax.stop_gradient(tokens[:, :-1]))
  given = groups(pred[:, :-1]), groups(tokens[:, 1:]), groups(here), last

  def one(pred, target, valid, last, key):
    nce_of = functools.partial(info_nce, target=target, key=key, valid=valid, **nce)
    found, copied = nce_of(pred), nce_of(last)
    count = lambda x: jnp.where(valid, x, jnp.zeros_like(x)).sum(dtype=jnp.float32)
    return NextSums(*map(count, (*found, copied.top1)), num=valid.sum(dtype=jnp.float32))

  sums = jax.vmap(one)(*given, jax.random.split(key, len(last)))
  return jax.tree.map(lambda x: x.sum(0), sums)
