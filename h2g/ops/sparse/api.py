"""Block-sparse attention: signatures, checks, choice of implementation, shard_map edge.

Axes: B batch, T queries, S keys, H heads, K key heads (K divides H), D head width, E value width,
N = ceil(T / block_q) query blocks, M = ceil(S / block_k) key blocks, W entries per list.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from h2g.ops import dispatch
from h2g.ops import masks
from h2g.ops import sharding as sharding_lib
from h2g.ops.checks import check_qkv
from h2g.ops.sparse import mosaic_gpu
from h2g.ops.sparse import mosaic_tpu
from h2g.ops.sparse import reference
from h2g.ops.sparse import tables
from h2g.ops.sparse import xla
from h2g.ops.sparse.call import Operands
from h2g.ops.sparse.call import Spec
from h2g.ops.sparse.tables import BlockLists

# What a function here receives and returns: `call.py`. A kernel joins by adding a line here.
IMPLEMENTATIONS: Mapping[str, Callable[[Operands, Spec], tuple[Array, Array]]] = dict(
  reference=reference.block_sparse_attention,
  xla=xla.block_sparse_attention,
  mosaic_gpu=mosaic_gpu.block_sparse_attention,
  mosaic_tpu=mosaic_tpu.block_sparse_attention,
)
ORDER: Mapping[str, tuple[str, ...]] = dict(
  gpu=("mosaic_gpu", "xla"), tpu=("mosaic_tpu", "xla"), cpu=("xla",)
)


class SparseOut(NamedTuple):
  """The output, and the log-sum-exp of the logits of each row.

  Attributes:
    out: [B, T, H, E] in q's dtype.
    lse: [B, H, T] float32; -inf where nothing is attended.
  """

  out: Array
  lse: Array


def block_sparse_attention(
  q: Array,
  k: Array,
  v: Array,
  table: BlockLists | Array | np.ndarray,
  *,
  block_size: tuple[int, int],
  mask: masks.Mask | Array | None = None,
  scale: float | None = None,
  softcap: float | None = None,
  return_lse: bool = False,
  sharding: NamedSharding | PartitionSpec | None = None,
  implementation: str | None = None,
) -> Array | SparseOut:
  """Softmax attention in which each block of queries reads the blocks of keys in its list.

    o[b,t,h] = sum_{s in A(b,t,h)} softmax_s(cap(scale * q[b,t,h].k[b,s,g])) v[b,s,g]
    A(b,t,h) = {s : s // block_k is listed for t // block_q, and the mask attends}

  with g = h // (H // K) and cap(x) = softcap * tanh(x / softcap), the identity without softcap.
  Time and memory follow what is listed, forward and backward. Differentiable in q, k and v.

  Args:
    q: [B, T, H, D] float.
    k: [B, S, K, D] like q.
    v: [B, S, K, E] like q.
    table: `BlockLists` with arrays [B|1, K|H|1, N, W] and [B|1, K|H|1, N], or a bool table
      [B|1, K|H|1, N, M]. NumPy or device arrays. Entries outside 0 .. M - 1 mean nothing, repeated
      ones count once, and a row without entries gives zeros and no gradient.
    block_size: (queries, keys) per block, in tokens; the last blocks may be shorter.
    mask: `h2g.ops.masks.Mask` or bool [B|1, H|1, T|1, S|1], for exactness inside blocks; True
      attends.
    scale: defaults to D ** -0.5.
    softcap: positive; None leaves the logits.
    return_lse: return `SparseOut`; the log-sum-exp is differentiable.
    sharding: layout of q over a mesh, where q itself does not show it; batch and heads may be
      sharded.
    implementation: None chooses the best that can serve the call; a name means that one or an
      error.
  Returns:
    [B, T, H, E] in q's dtype, or SparseOut. Accumulated in float32 (float64 for float64 operands).
  Raises:
    ValueError: shapes or arguments disagree; the message shows both.
    NotImplementedError: the named implementation cannot serve the call.
  Source: arXiv 1904.10509 (factorised patterns), arXiv 2007.14062 (blocks); tiles arXiv 2205.14135
    section 3.3.
  """
  _check(q, k, v, block_size, softcap)
  batch, num_queries, heads, width = q.shape
  num_keys, key_heads = k.shape[1:3]
  rows, blocks = -(-num_queries // block_size[0]), -(-num_keys // block_size[1])
  if not isinstance(table, BlockLists):
    table = tables.from_dense(_dense(table, blocks))
  tables.check_lists(table)
  shape = table.counts.shape
  if shape[0] not in (1, batch) or shape[1] not in (1, key_heads, heads) or shape[2] != rows:
    raise ValueError(
      f"the table is for [batch, heads, query blocks] = {shape}, expected [{batch} or 1, "
      f"{key_heads} or {heads} or 1, {rows}] for {num_queries} queries in blocks of {block_size[0]}"
    )
  empty = None
  if mask is not None:
    mask = masks.as_mask(mask)
    mask.check(batch, heads, num_queries, num_keys)
    known = mask.block_table(num_queries, num_keys, *block_size, static=True)
    empty = (known == masks.EMPTY).all((0, 1))
  spec = Spec(
    int(block_size[0]),
    int(block_size[1]),
    float(width**-0.5 if scale is None else scale),
    None if softcap is None else float(softcap),
  )
  allowed = None if empty is None or not empty.any() else ~empty
  table = tables.canonical(table, blocks, allowed)
  leaves, structure = jax.tree.flatten(mask)

  def serve(q, k, v, ids, counts, *leaves, origin):
    mask = jax.tree.unflatten(structure, leaves)
    if mask is not None:
      mask = mask if origin is None else mask.shifted(*origin)
      q, k, v = _without_padding(q, k, v, mask)
    if q.shape[1] == 0 or k.shape[1] == 0:
      return jnp.zeros((*q.shape[:3], v.shape[3]), q.dtype), jnp.full(
        (q.shape[0], q.shape[2], q.shape[1]), -jnp.inf, jnp.float32
      )
    if ids.shape[1] not in (1, k.shape[2]):
      # A list for each query head: then each is a key head of its own.
      k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    operands = Operands(q, k, v, ids, counts, mask)
    return dispatch.choose(
      "block_sparse_attention", IMPLEMENTATIONS, ORDER, implementation, operands, spec
    )

  mask_axes = [] if mask is None else mask.axes()
  result = sharding_lib.over_shards(
    serve,
    (q, k, v, *table, *leaves),
    ("bthd", "bthd", "bthd", "bhnw", "bhn", *("".join(a or "." for a in x) for x in mask_axes)),
    ("bthd", "bht"),
    sharding,
    origin=True,
  )
  return SparseOut(*result) if return_lse else result[0]


def selected_block_attention(
  q: Array,
  k: Array,
  v: Array,
  ids: Array,
  *,
  block_size: tuple[int, int],
  mask: masks.Mask | Array | None = None,
  scale: float | None = None,
  softcap: float | None = None,
  return_lse: bool = False,
  sharding: NamedSharding | PartitionSpec | None = None,
  implementation: str | None = None,
) -> Array | SparseOut:
  """Each block of queries attends to the key blocks it names, a fixed number per key head.

  `block_sparse_attention` with lists that are all of one length. block_q = 1 lets every query
  choose.

  Args:
    q: [B, T, H, D] float.
    k: [B, S, K, D] like q.
    v: [B, S, K, E] like q.
    ids: [B|1, K|H|1, N, W] int, the chosen key blocks. Ids outside 0 .. M - 1 (say -1) choose
      nothing, repeated ones count once, and a row that chooses nothing gives zeros and no gradient.
    block_size: (queries, keys) per block, in tokens.
    mask: as in `block_sparse_attention`; masks.causal() where the chosen block is the query's own.
    scale: defaults to D ** -0.5.
    softcap: positive; None leaves the logits.
    return_lse: return `SparseOut`.
    sharding: as in `block_sparse_attention`.
    implementation: likewise.
  Returns:
    [B, T, H, E] in q's dtype, or SparseOut.
  Raises:
    ValueError: shapes or arguments disagree. NotImplementedError: as `block_sparse_attention`.
  Source: arXiv 2502.11089 section 3.3.2 (selected blocks), arXiv 2502.13189 (mixture of blocks).
  """
  if not hasattr(ids, "dtype") or ids.ndim != 4 or not jnp.issubdtype(ids.dtype, jnp.integer):
    kind = f"{ids.dtype}{list(ids.shape)}" if hasattr(ids, "dtype") else repr(ids)
    raise ValueError(f"ids must be int [B|1, K|H|1, query blocks, chosen]: got {kind}")
  xp = np if isinstance(ids, np.ndarray) else jnp
  table = BlockLists(ids, xp.full(ids.shape[:3], ids.shape[3], xp.int32))
  return block_sparse_attention(
    q,
    k,
    v,
    table,
    block_size=block_size,
    mask=mask,
    scale=scale,
    softcap=softcap,
    return_lse=return_lse,
    sharding=sharding,
    implementation=implementation,
  )


def _dense(table, blocks: int):
  if getattr(table, "ndim", 0) == 4 and table.shape[3] != blocks:
    raise ValueError(f"the bool table has {table.shape[3]} key blocks, the keys make {blocks}")
  return table


def _without_padding(q, k, v, mask):
  """Zeroes rows that the mask excludes altogether, so that 0 * NaN never meets a sum."""
  clean = lambda x, valid: (
    x if valid is None else jnp.where(valid[:, :, None, None], x, jnp.zeros_like(x))
  )
  valid = mask.valid_keys(k.shape[1])
  return clean(q, mask.valid_queries(q.shape[1])), clean(k, valid), clean(v, valid)


def _check(q, k, v, block_size, softcap):
  check_qkv(q, k, v)
  pair = isinstance(block_size, (tuple, list)) and len(block_size) == 2
  if not pair or any(size < 1 for size in block_size):
    raise ValueError(
      f"block_size must be (queries, keys) per block, both positive: got {block_size}"
    )
  if softcap is not None and not softcap > 0:
    raise ValueError(f"softcap must be positive: got {softcap}")
