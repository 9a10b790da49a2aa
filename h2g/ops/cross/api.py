"""Arrangements of `attention`: selected queries ask all keys, queries ask the keys of two images.

There is nothing to choose here: the attention inside chooses its own implementation.
"""

import math
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp

from h2g.ops.attention import attention


class GlobalLocalOut(NamedTuple):
  """out: [B, R, H, E], a row per selected query; ids: [B, R] int32, which queries those are."""

  out: Array
  ids: Array


def selected_queries(scores: Array, ratio: float, *, always_keep: tuple[int, ...] = (0,)) -> Array:
  """The tokens with the largest scores: ceil(ratio * candidates) of them, at least one.

  Args:
    scores: [B, N] float.
    ratio: share of the candidates, the tokens besides `always_keep`, in (0, 1].
    always_keep: tokens that come first, whatever their score.
  Returns:
    [B, len(always_keep) + R] int32, the kept tokens, then the others by falling score (of equal
    scores the first first). It carries no gradient.
  Raises:
    ValueError: shapes, ratio or kept tokens that cannot be.
  Source: arXiv 2205.02151 sec. 3.2; that the class token is among the queries is our reading.
  """
  if scores.ndim != 2:
    raise ValueError(f"scores must be [batch, tokens]: got shape {scores.shape}")
  batch, tokens = scores.shape
  kept = jnp.asarray(always_keep, jnp.int32)
  candidates = tokens - len(set(always_keep))
  if any(not 0 <= token < tokens for token in always_keep) or candidates < 1:
    raise ValueError(f"always_keep={always_keep} must leave some of {tokens} tokens")
  if not 0 < ratio <= 1:
    raise ValueError(f"ratio={ratio} is a share of the tokens: give a number in (0, 1]")
  # 0.1 * 10 is a little more than 1 in floating point: not a reason for an eleventh part.
  count = min(max(1, math.ceil(ratio * candidates - 1e-9)), candidates)
  scores = jax.lax.stop_gradient(scores).at[:, kept].set(-jnp.inf)
  chosen = jax.lax.top_k(scores, count)[1].astype(jnp.int32)
  return jnp.concatenate([jnp.broadcast_to(kept, (batch, len(always_keep))), chosen], axis=1)


def global_local_attention(
  q: Array,
  k: Array,
  v: Array,
  scores: Array,
  ratio: float,
  *,
  always_keep: tuple[int, ...] = (0,),
  implementation: str | None = None,
) -> GlobalLocalOut:
  """The most attended tokens ask all tokens: rows `selected_queries(scores)` of self-attention.

  Args:
    q, k, v: [B, N, H, D] float, as in `attention`.
    scores: [B, N] float, as from `rollout_row`.
    ratio, always_keep: see `selected_queries`.
    implementation: of `attention`.
  Returns:
    GlobalLocalOut(out [B, R, H, D], ids [B, R]).
  Source: arXiv 2205.02151 eq. 4-5.
  """
  if scores.shape != q.shape[:2]:
    raise ValueError(f"scores {scores.shape} must be [batch, tokens] of q {q.shape}")
  ids = selected_queries(scores, ratio, always_keep=always_keep)
  q = jnp.take_along_axis(q, ids[:, :, None, None], axis=1)
  return GlobalLocalOut(attention(q, k, v, implementation=implementation), ids)


def pairwise_attention(
  q: Array,
  k: Array,
  v: Array,
  partner: Array,
  *,
  others: tuple[Array, Array] | None = None,
  **options,
) -> Array:
  """Queries of one image ask the keys of two: one softmax over both.

    out[b] = softmax(q[b] [k[b]; k'[p]]^T / sqrt(D)) [v[b]; v'[p]],  p = partner[b]

  Args:
    q, k, v: [B, N, H, D] float, as in `attention`.
    partner: [B] int32, the image whose keys join.
    others: (k', v') like k and v; by default k and v themselves.
    **options: of `attention`; masks and biases see 2 N keys, one's own first.
  Returns:
    [B, N, H, D]: self-attention, exactly, where the partner is the image itself.
  Source: arXiv 2205.02151 eq. 6.
  """
  if partner.shape != q.shape[:1]:
    raise ValueError(f"partner {partner.shape} must be [batch] of q {q.shape}")
  other_k, other_v = (k, v) if others is None else others
  join = lambda own, other: jnp.concatenate([own, other[partner]], axis=1)
  return attention(q, join(k, other_k), join(v, other_v), **options)


def derangement(key: Array, num: int) -> Array:
  """[num] int32: a random cycle, so nothing stays where it is and everything is a partner once.

  Of one element there is none: it is its own partner.
  """
  order = jax.random.permutation(key, num)
  return jnp.zeros(num, jnp.int32).at[order].set(jnp.roll(order, 1).astype(jnp.int32))
