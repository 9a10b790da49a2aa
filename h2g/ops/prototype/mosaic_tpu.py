"""Prototype attention on a TPU: one pass over the features, the best so far stays on chip.

Plan. The grid is (batch, block of features), blocks in order. Features are read as they lie, all
heads of a row side by side in lanes. Heads narrower than a register share a slab of 128 lanes: the
queries of each stand in the slab with zeros in the lanes of the others, so that one product of the
slab gives the similarities of one head, at no more passes of the MXU than heads that are padded to
128 lanes, and without reading padding. Of a block only the largest similarity of each query and its
place are kept, in VMEM, a head after the other.

Bytes: B N H D size of features and B Q N of the mask, each read once; flops: 2 B H Q N max(D, 128);
two reductions of [Q, block] per head. At B 1, N 16,384, Q 100, H 8, D 32, bfloat16: 8.4 + 1.6 MB,
4.2 GFLOP (padded queries included), so the MXU and the reductions, not the memory, are the floor.
Rates: not measured.

float32 is multiplied at the highest precision: a rounded similarity would choose another feature.
"""

import functools

import jax
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from h2g.ops import dispatch
from h2g.ops.prototype.call import slabs

NAME = "mosaic_tpu"
LANES = 128
ROWS = 32  # of a native tile of int8, the mask's
VMEM = 14 * 2**20


def nearest(q: Array, x: Array, mask: Array | None) -> Array:
  """See `h2g.ops.prototype.prototype_attention`. Serves float32 and bfloat16."""
  dispatch.require(NAME, "tpu")
  if q.dtype not in (jnp.float32, jnp.bfloat16):
    raise NotImplementedError(f"{NAME} serves float32 and bfloat16: q is {q.dtype}")
  batch, num_queries, heads, _ = q.shape
  total = x.shape[1]
  q, x, side_by_side = slabs(q, x, LANES, rows=ROWS)  # [B, H, Q, W], [B, N, slabs * W]
  rows, width = q.shape[2:]
  block = _block(total, q.shape, x.shape[2], q.dtype)
  arrays = [q, x]
  specs = [
    pl.BlockSpec((None, heads, rows, width), lambda b, n: (b, 0, 0, 0)),
    pl.BlockSpec((None, block, x.shape[2]), lambda b, n: (b, n, 0)),
  ]
  if mask is not None:
    arrays.append(jnp.pad(mask, ((0, 0), (0, rows - num_queries), (0, 0))).astype(jnp.int8))
    specs.append(pl.BlockSpec((None, rows, block), lambda b, n: (b, 0, n)))
  found = pl.pallas_call(
    functools.partial(_kernel, total=total, side_by_side=side_by_side, masked=mask is not None),
    grid=(batch, -(-total // block)),
    in_specs=specs,
    out_specs=pl.BlockSpec((None, heads, rows, LANES), lambda b, n: (b, 0, 0, 0)),
    out_shape=jax.ShapeDtypeStruct((batch, heads, rows, LANES), jnp.int32),
    scratch_shapes=[pltpu.VMEM((heads, rows, LANES), jnp.float32)],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=2 * VMEM
    ),
    interpret=dispatch.interpreted(),
  )(*arrays)
  return found[:, :, :num_queries, 0]


def _block(total: int, queries: tuple[int, ...], width: int, dtype) -> int:
  """Features per grid step, by VMEM: few steps, a power of two up to 2048."""
  _, heads, rows, slab = queries
  size = jnp.dtype(dtype).itemsize
  # Queries in two buffers, and the best similarities and places, in two buffers what goes out.
  fixed = heads * rows * (2 * slab * size + 3 * LANES * 4)
  # Of a feature its row and the mask in two buffers, similarities and what is compared with them.
  per_feature = 2 * (width * size + rows) + 4 * rows * 4
  block = 2048
  while block > LANES and fixed + block * per_feature > VMEM:
    block //= 2
  if fixed + block * per_feature > VMEM:
    raise NotImplementedError(
      f"{NAME} holds all queries in VMEM: {rows} queries of {heads} heads and features of "
      f"{width} numbers need {fixed + block * per_feature >> 20} MiB of {VMEM >> 20}"
    )
  return min(block, -(-total // LANES) * LANES)


def _kernel(q, x, *refs, total: int, side_by_side: int, masked: bool):
  """q: [H, Q, W]; x: [c, slabs * W]; mask: [Q, c] int8; place, best: [H, Q, 128], lanes alike."""
  mask, place, best = refs if masked else (None, *refs)
  n = pl.program_id(1)
  (heads, rows, width), block = q.shape, x.shape[0]

  @pl.when(n == 0)
  def _():
    best[...] = jnp.full(best.shape, -jnp.inf, jnp.float32)
    place[...] = jnp.zeros(place.shape, jnp.int32)

  column = jax.lax.broadcasted_iota(jnp.int32, (rows, block), 1)
  allowed = column < total - n * block
  if masked:
    allowed &= mask[...].astype(jnp.int32) != 0
  for head in range(heads):
    start = head // side_by_side * width
    similarity = jax.lax.dot_general(
      q[head],
      x[:, start : start + width],
      (((1,), (1,)), ((), ())),
      precision=jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None,
      preferred_element_type=jnp.float32,
    )
    similarity = jnp.where(allowed, similarity, -jnp.inf)
    top = similarity.max(1, keepdims=True)
    at = jnp.where(similarity >= top, column, block).min(1, keepdims=True) + n * block
    before = best[head]
    better = jnp.broadcast_to(top, before.shape) > before  # of equals the first stays
    best[head] = jnp.where(better, jnp.broadcast_to(top, before.shape), before)
    place[head] = jnp.where(better, jnp.broadcast_to(at, before.shape), place[head])
