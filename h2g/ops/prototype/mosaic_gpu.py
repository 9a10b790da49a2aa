"""Prototype attention on Hopper: features are split among blocks of threads, then joined.

Plan. One block of threads (a warpgroup) per batch entry, head, tile of 64 queries and `split`
features. Tiles of 64 features stream by TMA through a ring of slots; a product of the tensor cores
gives the similarities, and of them only each query's largest and its place stay, in registers. What
the splits found is joined by XLA: the least place among those that reach the largest similarity.

Heads narrower than 64 share a slab of 64 numbers, the least that a tile of shared memory holds: the
queries of each stand in the slab with zeros where the others are. The mask is read from HBM in the
layout of the products, a byte a pair.

Bytes from HBM: B N H D size of features and B Q N of the mask; from the L2 cache a slab once for
each of its heads and tiles of queries, the mask once per head. At B 1, N 16,384, Q 100, H 8, D 32,
bfloat16: 10 MB, 2.3 us at 4.3 TB/s; 4.3 GFLOP of the tensor cores with what is padded, 5 us at 900
TFLOP/s; some 70 M comparisons and selections, 2.5 us. Rates: not measured.

Refused: float32 (TF32 would choose another feature), heads wider than 256.
"""

import functools

import jax
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from h2g.ops import dispatch
from h2g.ops import wgmma
from h2g.ops.prototype.call import slabs

NAME = "mosaic_gpu"
TILE = 64  # queries of a wgmma, and features
SLAB = 64
STAGES = 4
PROCESSORS = 132
MOST = 1 << 24  # whole numbers that float32 has, for places


def nearest(q: Array, x: Array, mask: Array | None) -> Array:
  """See `h2g.ops.prototype.prototype_attention`. Serves 16-bit floats."""
  dispatch.require_hopper(NAME)
  if dispatch.interpreted() and not hasattr(plgpu, "InterpretGPUParams"):
    raise NotImplementedError(f"{NAME}: this version of JAX has no interpreter of its kernels")
  batch, num_queries, _, width = q.shape
  total = x.shape[1]
  if q.dtype not in (jnp.bfloat16, jnp.float16):
    raise NotImplementedError(f"{NAME} serves bfloat16 and float16: q is {q.dtype}")
  if width > 256:
    raise NotImplementedError(f"{NAME} serves heads up to 256 wide: got {width}")
  if total >= MOST:
    raise NotImplementedError(f"{NAME} serves fewer than {MOST} features: x is {x.shape}")
  q, x, side_by_side = slabs(q, x, SLAB, rows=TILE)  # [B, H, Q, W], [B, N, slabs * W]
  rows = q.shape[2]
  if total < TILE and mask is None:  # what is padded must not be taken
    mask = jnp.ones((batch, num_queries, total), bool)
  if mask is not None:
    behind = max(TILE - total, 0)
    mask = jnp.pad(mask, ((0, 0), (0, rows - num_queries), (0, behind))).astype(jnp.int8)
  if total < TILE:
    x = jnp.pad(x, ((0, 0), (0, TILE - total), (0, 0)))
  best, place = _splits(q, x, mask, side_by_side)
  first = jnp.where(best >= best.max(2, keepdims=True), place, float(MOST)).min(2)
  return first[..., :num_queries].astype(jnp.int32)


def _split(total: int, lists: int) -> int:
  """Features per block of threads, in whole tiles: four blocks per processor, where there are."""
  wanted = total * lists // (4 * PROCESSORS)
  return max(256, min(4096, wanted // TILE * TILE))


def _splits(q: Array, x: Array, mask: Array | None, side_by_side: int) -> tuple[Array, Array]:
  """(largest similarity, its place) of every split, both [B, H, splits, Q] float32.

  Args:
    q: [B, H, Q, W], Q in whole tiles.
    x: [B, N, slabs * W], N at least a tile.
    mask: [B, Q, N] int8, or None.
    side_by_side: heads per slab.
  """
  batch, heads, rows, width = q.shape
  total, tiles = x.shape[1], rows // TILE
  split = _split(total, batch * heads * tiles)
  num = -(-total // split)

  def body(q, x, *refs):
    allowed, (best, place, q_tile, x_tile, q_ready, x_ready) = refs[:-6], refs[-6:]
    b, h, tile, n = (jax.lax.axis_index(name) for name in ("batch", "head", "tile", "split"))
    queries = pl.ds(tile * TILE, TILE)
    slab = pl.ds(jax.lax.div(h, jnp.int32(side_by_side)) * width, width)
    count = jax.lax.div(jnp.minimum(total - n * split, split) + (TILE - 1), jnp.int32(TILE))
    # No tile reaches past the last feature: the last one begins early, and finds the same places.
    start = lambda i: jnp.minimum(n * split + i * TILE, total - TILE)

    def fetch(i, slot):
      source = x.at[b, pl.ds(start(i), TILE), slab]
      plgpu.copy_gmem_to_smem(source, x_tile.at[slot], x_ready.at[slot])

    def step(i, carry):
      best, place = carry
      slot = jax.lax.rem(i, jnp.asarray(STAGES, i.dtype))
      plgpu.barrier_wait(x_ready.at[slot])
      similarity = wgmma.product(q_tile, wgmma.turned(x_tile.at[slot]))
      pl.when(i + STAGES < count)(lambda: fetch(i + STAGES, slot))
      if allowed:
        pairs = wgmma.load(allowed[0].at[b, queries, pl.ds(start(i), TILE)], wgmma.LAYOUT)
        similarity = jnp.where(pairs.astype(jnp.int32) != 0, similarity, -jnp.inf)
      top = similarity.max(axis=1)
      # The least column that reaches it, as the largest of negative numbers: maxima of float32 are
      # what every version reduces.
      column = wgmma.iota(similarity.shape, 1).astype(jnp.float32)
      reached = similarity >= jax.lax.broadcast_in_dim(top, similarity.shape, [0])
      at = jnp.where(reached, -column, -float(MOST)).max(axis=1)
      better = top > best  # of equals the first stays
      at = start(i).astype(jnp.float32) - at
      return jnp.where(better, top, best), jnp.where(better, at, place)

    plgpu.copy_gmem_to_smem(q.at[b, h, queries], q_tile, q_ready)
    for slot in range(STAGES):
      pl.when(slot < count)(functools.partial(fetch, slot, slot))
    plgpu.barrier_wait(q_ready)
    carry = wgmma.filled((TILE,), -jnp.inf), wgmma.filled((TILE,), 0.0)
    found = jax.lax.fori_loop(0, count, step, carry)
    best.at[b, h, n, queries][...], place.at[b, h, n, queries][...] = found

  options = dict(interpret=plgpu.InterpretGPUParams()) if dispatch.interpreted() else {}
  out = jax.ShapeDtypeStruct((batch, heads, num, rows), jnp.float32)
  return plgpu.kernel(
    body,
    out_type=(out, out),
    scratch_types=(
      wgmma.shared_tiles(TILE, width, dtype=q.dtype),
      wgmma.shared_tiles(STAGES, TILE, width, dtype=x.dtype),
      plgpu.Barrier(),
      plgpu.Barrier(num_barriers=STAGES),
    ),
    # Heads of a slab and tiles of queries side by side: they read the same features.
    grid=(batch, num, heads, tiles),
    grid_names=("batch", "split", "head", "tile"),
    **options,
  )(q, x, *(() if mask is None else (mask,)))
