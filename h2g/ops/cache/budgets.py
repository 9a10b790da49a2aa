"""How many rows each head or layer keeps: integers that add up exactly.

Axes: B batch, K key heads, S rows of the cache.
"""

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np


def apportion(shares, total: int, limit: int | None = None) -> np.ndarray:
  """Integers in proportion to the shares that add up to `total`.

  Each gets the whole part of its share, the rest goes to the largest fractions (the first of equal
  ones). What a limit cuts off is shared out again among the others.

  Args:
    shares: [n] numbers, not negative, not all 0.
    total: what they add up to.
    limit: largest integer anyone may get; None for none.
  Returns:
    [n] int64 NumPy.
  Raises:
    ValueError: a share is negative or not finite, all are 0, or n * limit < total.
  """
  shares = np.asarray(shares, np.float64)
  if shares.ndim != 1 or not len(shares) or not np.isfinite(shares).all() or (shares < 0).any():
    raise ValueError(f"shares must be a list of finite numbers that are not negative: got {shares}")
  if total < 0:
    raise ValueError(f"total must not be negative: got {total}")
  if limit is not None and total > limit * len(shares):
    raise ValueError(f"total {total} is more than {len(shares)} parts of at most {limit}")
  result = np.zeros(len(shares), np.int64)
  open_ = np.ones(len(shares), bool)
  while True:
    left = total - int(result[~open_].sum())
    weight = np.where(open_, shares, 0.0)
    if weight.sum() == 0:
      if left == 0:
        break
      if shares.sum() == 0:
        raise ValueError("shares are all 0")
      weight = open_.astype(np.float64)  # those with a share are full: the others get what is left
    exact = left * weight / weight.sum()
    whole = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - whole)[open_], kind="stable")
    whole[np.flatnonzero(open_)[order[: left - int(whole[open_].sum())]]] += 1
    result[open_] = whole[open_]
    if limit is None or (result <= limit).all():
      break
    full = open_ & (result >= limit)
    result[full] = limit
    open_ &= ~full
  return result


def uniform_budgets(total: int, parts: int) -> np.ndarray:
  """[parts] int64: `total` in parts that differ by at most 1, larger ones first."""
  return apportion(np.ones(parts), total)


def pyramid_budgets(
  total: int, layers: int, *, steepness: float = 20.0, limit: int | None = None
) -> np.ndarray:
  """Budgets that fall linearly from the first layer to the last.

  The last layer's share is 1 / steepness of the mean, the first one's as far above the mean.

  Args:
    total: rows of all layers together.
    layers: number of layers.
    steepness: at least 1; 1 is uniform.
    limit: largest budget of a layer (rows that there are); what it cuts off goes to the others.
  Returns:
    [layers] int64 NumPy that adds up to total, not increasing.
  Raises:
    ValueError: steepness below 1, or more rows asked for than there are.
  Source: arXiv 2406.02069 (PyramidKV) eq. 3-4; steepness is its beta.
  """
  if steepness < 1:
    raise ValueError(f"steepness must be at least 1: got {steepness}")
  least = 1 / steepness
  # Largest shares first and first of equal fractions: rounding keeps the order.
  result = apportion(np.linspace(2 - least, least, layers) if layers > 1 else [1.0], total, limit)
  return np.sort(result)[::-1].copy()


def adaptive_budgets(
  scores: Array, budget: int, *, floor: float = 0.2, lengths: Array | None = None
) -> Array:
  """Shares K * budget rows among the key heads of a batch entry, to where the scores are largest.

  Each head keeps floor * budget rows of its own (whole part); the rest are the largest scores of
  all heads together.

  Args:
    scores: [B, K, S] float; -inf is never kept.
    budget: mean rows per head, at most S.
    floor: share of the budget that is safe, in [0, 1]; 1 is uniform.
    lengths: [B] int or [B, K]: rows at or past it are never kept. None: all rows are there.
  Returns:
    [B, K] int32 that add up to K * budget over K, or to the number of rows that may be kept where
    there are fewer.
  Raises:
    ValueError: budget or floor out of range.
  Source: arXiv 2407.11550 (Ada-KV) algorithm 1; floor is its safeguard alpha.
  """
  batch, heads, rows = scores.shape
  if not 0 <= budget <= rows:
    raise ValueError(f"budget must be between 0 and the number of rows {rows}: got {budget}")
  if not 0 <= floor <= 1:
    raise ValueError(f"floor must be in [0, 1]: got {floor}")
  if budget == 0:
    return jnp.zeros((batch, heads), jnp.int32)
  scores = within_lengths(scores.astype(jnp.float32), lengths)
  # Rank of each row within its head; the first `safe` of each head come before everything else.
  order = jnp.argsort(-scores, axis=-1, stable=True)
  ranked = jnp.take_along_axis(scores, order, axis=-1)
  safe = int(floor * budget + 1e-9)
  first = (jnp.arange(rows) < safe)[None, None, :] & (ranked > -jnp.inf)
  flat = lambda x: jnp.reshape(x, (batch, heads * rows))
  head = jnp.broadcast_to(jnp.arange(heads, dtype=jnp.int32)[None, :, None], ranked.shape)
  _, _, head = jax.lax.sort(
    (flat(jnp.where(first, 0, 1)), flat(-ranked), flat(head)), dimension=1, num_keys=2
  )
  taken = head[:, : heads * budget, None] == jnp.arange(heads, dtype=jnp.int32)[None, None, :]
  counts = taken.sum(1, dtype=jnp.int32)
  # -inf sorts last: a head's share of those is what it has fewer rows than.
  return jnp.minimum(counts, (scores > -jnp.inf).sum(-1, dtype=jnp.int32))


def within_lengths(scores: Array, lengths: Array | None) -> Array:
  """Scores [B, K, S] with -inf at or past the lengths, [B] or [B, K]."""
  if lengths is None:
    return scores
  lengths = lengths[:, None] if lengths.ndim == 1 else lengths
  position = jnp.arange(scores.shape[-1], dtype=lengths.dtype)[None, None, :]
  return jnp.where(position < lengths[:, :, None], scores, -jnp.inf)
