"""The kernel of dk and dv, and of the gradient of a bias along keys."""

import jax
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from h2g.ops import wgmma
from h2g.ops.flash_gpu.call import Call
from h2g.ops.flash_gpu.call import Config
from h2g.ops.flash_gpu.call import ROWS
from h2g.ops.flash_gpu.gradient import Saved
from h2g.ops.flash_gpu.gradient import weights_and_gradient
from h2g.ops.flash_gpu.logits import is_row
from h2g.ops.flash_gpu.logits import Where
from h2g.ops.flash_gpu.moves import drain
from h2g.ops.flash_gpu.moves import launch
from h2g.ops.flash_gpu.moves import move_registers
from h2g.ops.flash_gpu.moves import ring_stages
from h2g.ops.flash_gpu.moves import slot_of
from h2g.ops.flash_gpu.padded import in_whole_tiles
from h2g.ops.flash_gpu.walk import place_of
from h2g.ops.flash_gpu.walk import two_loops
from h2g.ops.flash_gpu.walk import Walk


def d_keys(call: Call, config: Config, saved: Saved) -> tuple[Array, Array, Array | None]:
  """(dk, dv in whole tiles, column sums [B, H, S] of the gradient of a bias along keys, or None).

  Column sums need a key head per query head.
  """
  padded = in_whole_tiles(call, config, transposed=True)
  batch, _, heads, depth = padded.q.shape
  num_keys, key_heads = padded.k.shape[1:3]
  width, dtype = padded.v.shape[3], padded.q.dtype
  warpgroups = config.tile_k // ROWS
  group = heads // key_heads
  tiles, size = num_keys // config.tile_k, dtype.itemsize
  ratio = config.tile_q // ROWS
  stages = ring_stages(config.tile_k * (depth + width) * size, ROWS * (depth + width) * size)
  sums = is_row(call.bias, axis=3)

  def body(padded, lists, saved, dk_ref, dv_ref, sums_ref, shared, barriers):
    q_ref, k_ref, v_ref, logits, _ = padded
    k_shared, v_shared, q_shared, do_shared, lse_shared, delta_shared, sums_shared = shared
    k_ready, ready, free = barriers
    place = place_of(tiles)
    wg = place.warpgroup
    walk = Walk(lists, place.row(lists, 1), ratio, group)
    full, count = walk.counts()

    @pl.when(wg < warpgroups)
    def _compute():
      move_registers(warpgroups, memory=False)
      key = place.tile * config.tile_k + wg * ROWS
      mine = (place.batch, pl.ds(key, ROWS), place.head)
      k_tile, v_tile = k_shared.at[wg], v_shared.at[wg]
      plgpu.copy_gmem_to_smem(k_ref.at[mine], k_tile, k_ready.at[wg])
      plgpu.copy_gmem_to_smem(v_ref.at[mine], v_tile, k_ready.at[wg])
      plgpu.barrier_wait(k_ready.at[wg])

      def step(i, carry, partial):
        dk, dv, total = carry
        slot = slot_of(i, stages)
        repeat, entry = walk.at(i, full, count)
        head = place.head * group + repeat
        plgpu.barrier_wait(ready.at[slot])
        q_tile, do_tile = q_shared.at[slot], do_shared.at[slot]
        rows = [
          wgmma.load(ref.at[slot], wgmma.LAYOUT.reduce(0)) for ref in (lse_shared, delta_shared)
        ]
        x, d_weights = wgmma.two_products(
          k_tile, wgmma.turned(q_tile), v_tile, wgmma.turned(do_tile)
        )
        where = Where(place.batch, head, entry * ROWS, key, x.shape, True)
        weights, gradient = weights_and_gradient(logits, x, d_weights, rows, where, partial)
        if sums:
          total = total + gradient.sum(axis=1)
        dv = wgmma.add_product(dv, weights.astype(dtype), do_tile)
        dk = wgmma.add_product(dk, gradient.astype(dtype), q_tile)
        plgpu.barrier_arrive(free.at[slot])
        return dk, dv, total

      total = wgmma.filled((ROWS,), 0.0, wgmma.LAYOUT.reduce(1)) if sums else None
      zeros = [wgmma.filled((ROWS, n), 0.0, wgmma.LAYOUT) for n in (depth, width)]
      dk, dv, total = two_loops(full * group, count * group, step, (*zeros, total))
      k_tile[...] = (dk * config.scale).astype(dtype)
      v_tile[...] = dv.astype(dtype)
      if sums:
        sums_shared.at[wg][...] = total
      plgpu.commit_smem()
      plgpu.copy_smem_to_gmem(k_tile, dk_ref.at[mine])
      plgpu.copy_smem_to_gmem(v_tile, dv_ref.at[mine])
      if sums:
        vector = (place.batch, place.head, pl.ds(key, ROWS))
        plgpu.copy_smem_to_gmem(sums_shared.at[wg], sums_ref.at[vector])
      plgpu.wait_smem_to_gmem(0)

    @pl.when(wg == warpgroups)
    def _move():
      move_registers(warpgroups, memory=True)

      @pl.loop(0, count * group)
      def _(i):
        slot = slot_of(i, stages)
        repeat, entry = walk.at(i, full, count)
        head = place.head * group + repeat
        pl.when(i >= stages)(lambda: plgpu.barrier_wait(free.at[slot]))
        part = pl.ds(entry * ROWS, ROWS)
        for ref, tile in ((q_ref, q_shared), (saved.do, do_shared)):
          source = ref.at[place.batch, part, head]
          plgpu.copy_gmem_to_smem(source, tile.at[slot], ready.at[slot])
        for ref, tile in ((saved.lse, lse_shared), (saved.delta, delta_shared)):
          source = ref.at[place.batch, head, part]
          plgpu.copy_gmem_to_smem(source, tile.at[slot], ready.at[slot])

      drain(free, count * group, stages)

  vector = jax.ShapeDtypeStruct((batch, heads, num_keys), jnp.float32)
  return launch(
    body,
    out_type=(
      jax.ShapeDtypeStruct(padded.k.shape, dtype),
      jax.ShapeDtypeStruct(padded.v.shape, dtype),
      vector if sums else None,
    ),
    scratch_types=(
      (
        wgmma.shared_tiles(warpgroups, ROWS, depth, dtype=dtype),
        wgmma.shared_tiles(warpgroups, ROWS, width, dtype=dtype),
        wgmma.shared_tiles(stages, ROWS, depth, dtype=dtype),
        wgmma.shared_tiles(stages, ROWS, width, dtype=dtype),
        plgpu.SMEM((stages, ROWS), jnp.float32),
        plgpu.SMEM((stages, ROWS), jnp.float32),
        plgpu.SMEM((warpgroups, ROWS), jnp.float32) if sums else None,
      ),
      (
        plgpu.Barrier(num_arrivals=2, num_barriers=warpgroups),
        plgpu.Barrier(num_arrivals=4, num_barriers=stages),
        plgpu.Barrier(num_arrivals=warpgroups, num_barriers=stages),
      ),
    ),
    grid=(batch, key_heads, tiles),
    warpgroups=warpgroups,
  )(padded, call.by_key, saved)
