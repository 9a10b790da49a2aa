"""Block tables: which blocks of keys each block of queries may attend to, as padded lists.

A table costs one integer per pair of blocks that is kept, so it can be built for every batch, and
on the device. Tables of NumPy arrays are static: what they leave out is not even compiled. Builders
whose answer depends on nothing but sizes return NumPy; from device arrays comes a device table.

Axes: B batch, H heads, N query blocks, M key blocks, W entries per list. B|1: B or 1.
"""

from typing import Any
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np


class BlockLists(NamedTuple):
  """For each block of queries a list of blocks of keys.

  Entries outside 0 .. M - 1 mean nothing, and entries that stand in a list twice count once.

  Attributes:
    ids: [B|1, H|1, N, W] int32 numbers of key blocks. The second axis may also be the number of key
      heads, where all query heads of a key head share a list.
    counts: [B|1, H|1, N] int32, how many entries of each list, from its front, count.
  """

  ids: Any
  counts: Any


def _numpy(*arrays):
  """The array module for these arrays: NumPy while all are NumPy (or plain numbers)."""
  return np if all(isinstance(x, (np.ndarray, np.generic, int)) for x in arrays) else jnp


def from_dense(dense) -> BlockLists:
  """Lists of the True entries.

  Args:
    dense: [B|1, H|1, N, M] bool. NumPy gives lists as long as the longest; a device array lists of
      M.
  """
  _check_dense(dense)
  xp = _numpy(dense)
  counts = dense.sum(-1, dtype=xp.int32)
  if xp is np:
    width = max(int(counts.max(initial=0)), 1)
    ids = np.argsort(~dense, axis=-1, kind="stable")[..., :width]
  else:
    ids = jnp.argsort(~dense, axis=-1, stable=True)
  if ids.shape[-1] == 0:
    ids = xp.zeros((*ids.shape[:-1], 1), xp.int32)
  return BlockLists(ids.astype(xp.int32), counts)


def to_dense(table: BlockLists, num_key_blocks: int):
  """[B|1, H|1, N, M] bool of lists, for looking at; O(N M)."""
  ids, valid = entries(table, num_key_blocks)
  if _numpy(ids, valid) is np:
    dense = np.zeros((*ids.shape[:-1], num_key_blocks + 1), bool)
    np.put_along_axis(dense, np.where(valid, ids, num_key_blocks), True, axis=-1)
    return dense[..., :num_key_blocks]
  lists = jnp.where(valid, ids, num_key_blocks).reshape(-1, ids.shape[-1])
  rows = jnp.arange(lists.shape[0], dtype=jnp.int32)[:, None]
  dense = jnp.zeros((lists.shape[0], num_key_blocks + 1), bool).at[rows, lists].set(True)
  return dense.reshape(*ids.shape[:-1], -1)[..., :num_key_blocks]


def entries(table: BlockLists, num_key_blocks: int):
  """(ids, valid), both [B|1, H|1, N, W]: entries, sorted, and which count; a repeated one once."""
  ids, counts = table
  xp = _numpy(ids, counts)
  ids = ids.astype(xp.int32)
  place = xp.arange(ids.shape[-1], dtype=xp.int32)[None, None, None, :]
  valid = (place < counts[..., None]) & (ids >= 0) & (ids < num_key_blocks)
  # After sorting, with what does not count at the end, a repetition follows its first.
  ids = xp.sort(xp.where(valid, ids, num_key_blocks), axis=-1)
  first = xp.concatenate([xp.ones_like(ids[..., :1], bool), ids[..., 1:] != ids[..., :-1]], axis=-1)
  return ids.astype(xp.int32), first & (ids < num_key_blocks)


def canonical(table: BlockLists, num_key_blocks: int, allowed=None) -> BlockLists:
  """The same table with its lists ascending, without repetitions, and with what counts in front.

  Args:
    table: any.
    num_key_blocks: M.
    allowed: [N, M] bool NumPy or None; other pairs of blocks are taken out.
  """
  ids, valid = entries(table, num_key_blocks)
  xp = _numpy(ids, valid)
  if allowed is not None:
    row = np.arange(ids.shape[2])[None, None, :, None]
    valid = valid & xp.asarray(allowed)[row, xp.where(valid, ids, 0)]
  counts = valid.sum(-1, dtype=xp.int32)
  ids = xp.sort(xp.where(valid, ids, num_key_blocks), axis=-1)
  if xp is np:
    ids = ids[..., : max(int(counts.max(initial=0)), 1)]
  return BlockLists(ids.astype(xp.int32), counts)


def union(*tables: BlockLists) -> BlockLists:
  """Blocks that stand in any of the tables.

  Of static tables the lists are as long as needed; on the device as long as all lists together.
  """
  _check_tables(tables)
  arrays = [x for table in tables for x in table]
  xp = _numpy(*arrays)
  lead = np.broadcast_shapes(*(table.counts.shape for table in tables))
  wide = lambda x: xp.broadcast_to(xp.asarray(x), (*lead, x.shape[-1]))
  parts = []
  for ids, counts in tables:
    place = xp.arange(ids.shape[-1], dtype=xp.int32)[None, None, None, :]
    # What does not count becomes -1, which never does.
    parts.append(wide(xp.where(place < counts[..., None], ids, -1)))
  ids = xp.concatenate(parts, axis=-1).astype(xp.int32)
  return canonical(BlockLists(ids, xp.full(lead, ids.shape[-1], xp.int32)), np.iinfo(np.int32).max)


def intersection(first: BlockLists, *others: BlockLists) -> BlockLists:
  """Blocks that stand in all of the tables."""
  _check_tables((first, *others))
  limit = np.iinfo(np.int32).max
  for other in others:
    xp = _numpy(*first, *other)
    ids, valid = entries(first, limit)
    other_ids, other_valid = entries(other, limit)
    same = (ids[..., :, None] == other_ids[..., None, :]) & other_valid[..., None, :]
    kept = valid & same.any(-1)
    ids = xp.where(kept, ids, -1).astype(xp.int32)
    ids = xp.broadcast_to(ids, kept.shape)
    counts = xp.full(ids.shape[:-1], ids.shape[-1], xp.int32)
    first = canonical(BlockLists(ids, counts), limit)
  return first


def window_table(
  num_queries: int,
  num_keys: int,
  block_size: tuple[int, int],
  left: int | None,
  right: int | None = 0,
  *,
  offset: int = 0,
) -> BlockLists:
  """Every block that holds a pair with query + offset - left <= key <= query + offset + right.

  Args:
    num_queries: T, in tokens.
    num_keys: S, in tokens.
    block_size: (queries, keys) per block.
    left: tokens before the query; None for all.
    right: tokens after it; None for all.
    offset: position of query 0 among the keys.
  Returns:
    Static BlockLists [1, 1, N, W]. Exact to the token with mask=masks.window(left, right).
  """
  q_lo, q_hi, k_lo, k_hi = _ends(num_queries, num_keys, block_size)
  kept = np.ones((len(q_lo), len(k_lo)), bool)
  if left is not None:
    kept &= k_hi[None, :] >= q_lo[:, None] + offset - left
  if right is not None:
    kept &= k_lo[None, :] <= q_hi[:, None] + offset + right
  return from_dense(kept[None, None])


def dilated_table(
  num_queries: int,
  num_keys: int,
  block_size: tuple[int, int],
  stride: int,
  *,
  reach: int | None = None,
  causal: bool = True,
) -> BlockLists:
  """Every stride-th block of keys, counted from the block that holds the query.

  Args:
    num_queries: T, in tokens.
    num_keys: S, in tokens.
    block_size: (queries, keys) per block.
    stride: in key blocks.
    reach: how many blocks on each side; None for all.
    causal: leave out blocks after the query.
  Returns:
    Static BlockLists [1, 1, N, W].
  Source: strided pattern of arXiv 1904.10509 section 4.3, in blocks.
  """
  if stride < 1:
    raise ValueError(f"stride must be at least 1 block: got {stride}")
  q_lo, q_hi, k_lo, _ = _ends(num_queries, num_keys, block_size)
  own = (q_lo // block_size[1])[:, None]  # key block of the first query
  last = (q_hi // block_size[1])[:, None]
  block = np.arange(len(k_lo))[None, :]
  kept = (own - block) % stride == 0
  if reach is not None:
    kept &= np.abs(own - block) <= stride * reach
  kept |= (block >= own) & (block <= last)
  if causal:
    kept &= k_lo[None, :] <= q_hi[:, None]
  return from_dense(kept[None, None])


def global_table(
  num_queries: int,
  num_keys: int,
  block_size: tuple[int, int],
  num_global: int,
  *,
  rows: bool = True,
) -> BlockLists:
  """The first keys for everybody; with `rows` also all keys for the first queries.

  Args:
    num_queries: T, in tokens.
    num_keys: S, in tokens.
    block_size: (queries, keys) per block.
    num_global: tokens.
    rows: also give the first tokens, as queries, every key.
  Returns:
    Static BlockLists [1, 1, N, W].
  Source: global tokens of arXiv 2004.05150 and arXiv 2007.14062; sinks arXiv 2309.17453.
  """
  q_lo, _, k_lo, _ = _ends(num_queries, num_keys, block_size)
  kept = np.broadcast_to(k_lo[None, :] < num_global, (len(q_lo), len(k_lo)))
  if rows:
    kept = kept | (q_lo[:, None] < num_global)
  return from_dense(kept[None, None])


def document_table(
  q_ids, k_ids=None, *, block_size: tuple[int, int], width: int | None = None
) -> BlockLists:
  """Every block that may hold a query and a key of the same document.

  Args:
    q_ids: [B|1, T] int, document of each query; ascending within a row, as packed documents are
      (otherwise blocks are kept that need not be). Negative: padding.
    k_ids: [B|1, S] likewise; q_ids where None.
    block_size: (queries, keys) per block.
    width: entries per list of a device table; None keeps M, which is always enough. The nearest to
      the front are kept.
  Returns:
    BlockLists [B|1, 1, N, W], static for NumPy ids. Exact to the token with
    mask=masks.segments(q_ids, k_ids).
  """
  k_ids = q_ids if k_ids is None else k_ids
  for name, ids in (("q_ids", q_ids), ("k_ids", k_ids)):
    if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
      raise ValueError(f"{name} must be int [B or 1, length]: got {ids.dtype}{ids.shape}")
  xp = _numpy(q_ids, k_ids)
  q_least, q_most = _extremes(xp, q_ids, block_size[0])
  k_least, k_most = _extremes(xp, k_ids, block_size[1])
  meet = (q_least[:, :, None] <= k_most[:, None, :]) & (k_least[:, None, :] <= q_most[:, :, None])
  table = from_dense(meet[:, None])
  return (
    table if width is None else BlockLists(table.ids[..., :width], xp.minimum(table.counts, width))
  )


def pooled_scores(q: Array, k: Array, block_size: tuple[int, int]) -> Array:
  """How much blocks want one another: product of mean query and mean key, per key head.

  Args:
    q: [B, T, H, D] float.
    k: [B, S, K, D] like q.
    block_size: (queries, keys) per block; the last blocks may be shorter.
  Returns:
    [B, K, N, M] float32, query heads of one key head averaged.
  Source: arXiv 2502.11089 section 3.3.2 and arXiv 2502.13189 eq. 6 select by pooled keys.
  """
  batch, _, heads, width = q.shape
  key_heads = k.shape[2]
  q = q.astype(jnp.float32).reshape(batch, q.shape[1], key_heads, heads // key_heads, width).mean(3)
  q, k = _pooled(q, block_size[0]), _pooled(k.astype(jnp.float32), block_size[1])
  return jnp.einsum("bngd,bmgd->bgnm", q, k) * width**-0.5


def top_k_table(scores: Array, k: int, *, causal: tuple[int, int] | None = None) -> BlockLists:
  """The k blocks with the largest scores for each block of queries.

  Args:
    scores: [B|1, H|1, N, M] float, e.g. `pooled_scores`; -inf is never chosen.
    k: blocks per list; M where there are fewer.
    causal: block_size where blocks that lie wholly in the future are never chosen; None: all may
      be.
  Returns:
    Device BlockLists [B|1, H|1, N, min(k, M)]. No gradient: a choice has none.
  """
  if k < 1:
    raise ValueError(f"k must be at least 1 block: got {k}")
  scores = jax.lax.stop_gradient(scores)
  rows, blocks = scores.shape[-2:]
  if causal is not None:
    last = (np.arange(rows) + 1) * causal[0] - 1
    open_ = np.arange(blocks)[None, :] * causal[1] <= last[:, None]
    scores = jnp.where(jnp.asarray(open_)[None, None], scores, -jnp.inf)
  values, ids = jax.lax.top_k(scores, min(k, blocks))
  return BlockLists(ids.astype(jnp.int32), (values > -jnp.inf).sum(-1, dtype=jnp.int32))


def _pooled(x: Array, size: int) -> Array:
  """[B, T, K, D] -> [B, ceil(T / size), K, D] means."""
  length = x.shape[1]
  blocks = -(-length // size)
  x = jnp.pad(x, ((0, 0), (0, blocks * size - length), (0, 0), (0, 0)))
  counts = np.minimum(size, length - np.arange(blocks) * size).astype(np.float32)
  return x.reshape(x.shape[0], blocks, size, *x.shape[2:]).sum(2) / counts[None, :, None, None]


def _ends(num_queries: int, num_keys: int, block_size: tuple[int, int]):
  """First and last query, first and last key of each block, NumPy."""
  for name, size in (("queries", block_size[0]), ("keys", block_size[1])):
    if size < 1:
      raise ValueError(f"block_size {block_size} must be positive: got {size} {name} per block")
  q_lo, k_lo = np.arange(0, num_queries, block_size[0]), np.arange(0, num_keys, block_size[1])
  q_hi = np.minimum(q_lo + block_size[0], num_queries) - 1
  k_hi = np.minimum(k_lo + block_size[1], num_keys) - 1
  return q_lo, q_hi, k_lo, k_hi


def _extremes(xp, ids, size: int):
  """Least and greatest document of each block, padding left out."""
  rows, length = ids.shape
  blocks = -(-length // size)
  ids = xp.pad(xp.asarray(ids), ((0, 0), (0, blocks * size - length)), constant_values=-1)
  ids = ids.reshape(rows, blocks, size)
  most = ids.max(-1)
  least = xp.where(ids < 0, np.iinfo(np.int32).max, ids).min(-1)
  # A block of padding has most -1 and meets nobody.
  return least, most


def _check_dense(dense):
  if not hasattr(dense, "dtype") or dense.ndim != 4 or dense.dtype != np.bool_:
    kind = f"{dense.dtype}{list(dense.shape)}" if hasattr(dense, "dtype") else repr(dense)
    raise ValueError(f"a dense table must be bool [B|1, H|1, query blocks, key blocks]: got {kind}")


def check_lists(table: BlockLists) -> None:
  """Raises ValueError where the arrays of a table do not fit one another."""
  ids, counts = table
  for name, x, rank in (("ids", ids, 4), ("counts", counts, 3)):
    if not hasattr(x, "dtype") or x.ndim != rank or not jnp.issubdtype(x.dtype, jnp.integer):
      kind = f"{x.dtype}{list(x.shape)}" if hasattr(x, "dtype") else repr(x)
      raise ValueError(f"{name} of a block table must be an int array of rank {rank}: got {kind}")
  if ids.shape[:3] != counts.shape:
    raise ValueError(f"ids {ids.shape} of a block table must be counts {counts.shape} with lists")


def _check_tables(tables) -> None:
  for table in tables:
    check_lists(table)
  rows = {table.counts.shape[2] for table in tables}
  if len(rows) > 1:
    raise ValueError(f"tables must have equally many query blocks: got {sorted(rows)}")
