"""The kernel of dq, and of the gradient of a bias along queries."""

import jax
from jax import Array
from jax import lax
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


def d_queries(call: Call, config: Config, saved: Saved) -> tuple[Array, Array | None]:
  """(dq in whole tiles, row sums [B, H, T] of the gradient of a bias along queries, or None)."""
  padded = in_whole_tiles(call, config)
  batch, length, heads, depth = padded.q.shape
  width, dtype = padded.v.shape[3], padded.q.dtype
  warpgroups = config.tile_q // ROWS
  per_key_head = heads // padded.k.shape[2]
  tiles, size = length // config.tile_q, dtype.itemsize
  keys = min(config.tile_k, 64 if max(depth, width) > 64 else 128)
  ratio = config.tile_k // keys
  stages = ring_stages(config.tile_q * (depth + width) * size, keys * (depth + width) * size)
  sums = is_row(call.bias, axis=2)

  def body(padded, lists, saved, dq_ref, sums_ref, shared, barriers):
    q_ref, k_ref, v_ref, logits, _ = padded
    q_shared, do_shared, k_shared, v_shared, sums_shared = shared
    q_ready, ready, free = barriers
    place = place_of(tiles)
    wg = place.warpgroup
    walk = Walk(lists, place.row(lists, per_key_head), ratio)
    full, count = walk.counts()

    @pl.when(wg < warpgroups)
    def _compute():
      move_registers(warpgroups, memory=False)
      query = place.tile * config.tile_q + wg * ROWS
      mine = (place.batch, pl.ds(query, ROWS), place.head)
      vector = (place.batch, place.head, pl.ds(query, ROWS))
      q_tile, do_tile = q_shared.at[wg], do_shared.at[wg]
      plgpu.copy_gmem_to_smem(q_ref.at[mine], q_tile, q_ready.at[wg])
      plgpu.copy_gmem_to_smem(saved.do.at[mine], do_tile, q_ready.at[wg])
      rows = [
        wgmma.load(ref.at[vector], wgmma.LAYOUT.reduce(1)) for ref in (saved.lse, saved.delta)
      ]
      plgpu.barrier_wait(q_ready.at[wg])

      def step(i, carry, partial):
        acc, total = carry
        slot = slot_of(i, stages)
        _, entry = walk.at(i, full, count)
        plgpu.barrier_wait(ready.at[slot])
        k_tile, v_tile = k_shared.at[slot], v_shared.at[slot]
        x, d_weights = wgmma.two_products(
          q_tile, wgmma.turned(k_tile), do_tile, wgmma.turned(v_tile)
        )
        where = Where(place.batch, place.head, query, entry * keys, x.shape, False)
        _, gradient = weights_and_gradient(logits, x, d_weights, rows, where, partial)
        if sums:
          total = total + gradient.sum(axis=1)
        acc = wgmma.add_product(acc, gradient.astype(dtype), k_tile)
        plgpu.barrier_arrive(free.at[slot])
        return acc, total

      total = wgmma.filled((ROWS,), 0.0, wgmma.LAYOUT.reduce(1)) if sums else None
      carry = wgmma.filled((ROWS, depth), 0.0, wgmma.LAYOUT), total
      acc, total = two_loops(full, count, step, carry)
      q_tile[...] = (acc * config.scale).astype(dtype)
      if sums:
        sums_shared.at[wg][...] = total
      plgpu.commit_smem()
      plgpu.copy_smem_to_gmem(q_tile, dq_ref.at[mine])
      if sums:
        plgpu.copy_smem_to_gmem(sums_shared.at[wg], sums_ref.at[vector])
      plgpu.wait_smem_to_gmem(0)

    @pl.when(wg == warpgroups)
    def _move():
      move_registers(warpgroups, memory=True)
      key_head = lax.div(place.head, jnp.int32(per_key_head))

      @pl.loop(0, count)
      def _(i):
        slot = slot_of(i, stages)
        _, entry = walk.at(i, full, count)
        pl.when(i >= stages)(lambda: plgpu.barrier_wait(free.at[slot]))
        rows = (place.batch, pl.ds(entry * keys, keys), key_head)
        plgpu.copy_gmem_to_smem(k_ref.at[rows], k_shared.at[slot], ready.at[slot])
        plgpu.copy_gmem_to_smem(v_ref.at[rows], v_shared.at[slot], ready.at[slot])

      drain(free, count, stages)

  vector = jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)
  return launch(
    body,
    out_type=(jax.ShapeDtypeStruct(padded.q.shape, dtype), vector if sums else None),
    scratch_types=(
      (
        wgmma.shared_tiles(warpgroups, ROWS, depth, dtype=dtype),
        wgmma.shared_tiles(warpgroups, ROWS, width, dtype=dtype),
        wgmma.shared_tiles(stages, keys, depth, dtype=dtype),
        wgmma.shared_tiles(stages, keys, width, dtype=dtype),
        plgpu.SMEM((warpgroups, ROWS), jnp.float32) if sums else None,
      ),
      (
        plgpu.Barrier(num_arrivals=2, num_barriers=warpgroups),
        plgpu.Barrier(num_arrivals=2, num_barriers=stages),
        plgpu.Barrier(num_arrivals=warpgroups, num_barriers=stages),
      ),
    ),
    grid=(batch, heads, tiles),
    warpgroups=warpgroups,
  )(padded, call.by_query, saved)
