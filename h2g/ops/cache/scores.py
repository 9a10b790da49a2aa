"""How much each row of a cache matters: one number per row and key head, larger is kept longer.

Every function returns [B, K, S] float32 (B|1 and K|1 where the answer is the same for all). Scores
are made to be combined: add, multiply, take maxima; inf is always kept first, -inf never.

Axes: B batch, S rows of the cache, H heads, K key heads (K divides H), D head width.
"""

import jax
from jax import Array
import jax.numpy as jnp

from h2g.ops import masks
from h2g.ops.attention import attention


def accumulated_mass(
  q: Array,
  k: Array,
  *,
  mask: masks.Mask | Array | None = None,
  scale: float | None = None,
  softcap: float | None = None,
  mean: bool = False,
  implementation: str | None = None,
) -> Array:
  """Attention that each key received from all queries: sum_t softmax_s(scale * q_t.k_s).

  Args:
    q: [B, T, H, D] float.
    k: [B, S, K, D] like q.
    mask: as in `attention`; None is causal with the last query on the last key.
    scale: defaults to D ** -0.5.
    softcap: as in `attention`.
    mean: divide by the number of queries at or after the key, which early keys have more of.
    implementation: of `attention`.
  Returns:
    [B, K, S] float32, averaged over the query heads of each key head.
  Source: arXiv 2306.14048 (H2O) eq. 2; mean: arXiv 2402.06262 section 3.2.
  """
  offset = k.shape[1] - q.shape[1]
  mask = masks.causal(offset) if mask is None else mask
  found = attention(
    q,
    k,
    k,
    mask=mask,
    scale=scale,
    softcap=softcap,
    return_column_mass=True,
    implementation=implementation,
  )
  mass = _per_key_head(found.column_mass, k.shape[2])
  if mean:
    position = jnp.arange(k.shape[1])
    later = jnp.minimum(k.shape[1] - position, q.shape[1]).astype(mass.dtype)
    mass = mass / later[None, None, :]
  return mass.astype(jnp.float32)


def window_mass(
  q: Array,
  k: Array,
  *,
  lengths: Array | None = None,
  pool: int = 5,
  pooling: str = "mean",
  scale: float | None = None,
  softcap: float | None = None,
  implementation: str | None = None,
) -> Array:
  """Attention that each key received from the last queries, smoothed over neighbours.

  Args:
    q: [B, W, H, D] float, the last W queries (the observation window); causal.
    k: [B, S, K, D] like q, S >= W.
    lengths: [B] int, rows of each batch entry; the window ends there. None: S.
    pool: width of the smoothing window in rows, odd; 1 for none.
    pooling: "mean" or "max".
    scale: defaults to D ** -0.5.
    softcap: as in `attention`.
    implementation: of `attention`.
  Returns:
    [B, K, S] float32, averaged over the window and over the query heads of each key head. inf for
    keys of the window, so that they are kept; -inf past the lengths.
  Raises:
    ValueError: pool is even, pooling unknown, or the window longer than the cache.
  Source: arXiv 2404.14469 (SnapKV) section 4 and listing 1; grouped heads averaged as in
    NVIDIA/kvpress.
  """
  window, rows = q.shape[1], k.shape[1]
  if pool < 1 or pool % 2 == 0:
    raise ValueError(f"pool must be odd and positive: got {pool}")
  if pooling not in ("mean", "max"):
    raise ValueError(f'pooling must be "mean" or "max": got {pooling!r}')
  if window > rows:
    raise ValueError(f"q holds {window} queries, more than the {rows} rows of k")
  if lengths is None:
    start = rows - window
    mask, position = masks.causal(start), jnp.arange(rows, dtype=jnp.int32)[None, None, :]
    inside, past = position >= start, jnp.zeros_like(position, bool)
  else:
    start = (lengths - window).astype(jnp.int32)
    mask = masks.causal(start) & masks.key_padding(lengths)
    position = jnp.arange(rows, dtype=jnp.int32)[None, None, :]
    inside, past = (position >= x[:, None, None] for x in (start, lengths.astype(jnp.int32)))
  options = dict(scale=scale, softcap=softcap, implementation=implementation)
  mass = accumulated_mass(q, k, mask=mask, **options) / window
  # Keys of the window take no part in the smoothing of those before them.
  mass = _smoothed(jnp.where(inside, jnp.zeros_like(mass), mass), pool, pooling)
  mass = jnp.where(inside, jnp.inf, mass)
  return jnp.where(past, -jnp.inf, mass)


def recency(rows: int) -> Array:
  """Position of each row, [1, 1, S]: the last are kept, a sliding window."""
  return jnp.arange(rows, dtype=jnp.float32)[None, None, :]


def sink_recent(rows: int, sinks: int = 4) -> Array:
  """The first rows, then the last, [1, 1, S]. Source: arXiv 2309.17453 section 3.2."""
  position = recency(rows)
  return jnp.where(position < sinks, jnp.inf, position)


def key_norm(k: Array) -> Array:
  """-|k|, [B, K, S]: keys of small norm receive much attention. Source: arXiv 2406.11430 section 3.

  Args:
    k: [B, S, K, D] float.
  """
  return -jnp.linalg.norm(jnp.moveaxis(k, 2, 1).astype(jnp.float32), axis=-1)


def _per_key_head(mass: Array, key_heads: int) -> Array:
  """[B, H, S] -> [B, K, S], mean over the query heads of a key head."""
  batch, heads, rows = mass.shape
  return jnp.reshape(mass, (batch, key_heads, heads // key_heads, rows)).mean(2)


def _smoothed(x: Array, width: int, pooling: str) -> Array:
  """Mean (zeros outside counted) or maximum over a centred window of rows."""
  if width == 1:
    return x
  window, side = (1, 1, width), (width - 1) // 2
  padding = ((0, 0), (0, 0), (side, side))
  if pooling == "max":
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, (1, 1, 1), padding)
  return jax.lax.reduce_window(x, 0.0, jax.lax.add, window, (1, 1, 1), padding) / width
