"""The forward kernel."""

import jax
from jax import Array
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from h2g.ops import wgmma
from h2g.ops.flash_gpu.call import Call
from h2g.ops.flash_gpu.call import Config
from h2g.ops.flash_gpu.call import LOG2E
from h2g.ops.flash_gpu.call import ROWS
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


def forward(call: Call, config: Config) -> tuple[Array, Array]:
  padded = in_whole_tiles(call, config)
  batch, length, heads, depth = padded.q.shape
  width, dtype = padded.v.shape[3], padded.q.dtype
  warpgroups = config.tile_q // ROWS
  per_key_head = heads // padded.k.shape[2]
  tiles, tile_k = length // config.tile_q, config.tile_k
  size = dtype.itemsize
  resident = config.tile_q * size * (depth + (width if width != depth else 0))
  stages = ring_stages(resident, tile_k * (depth + width) * size)

  def body(padded, lists, out_ref, lse_ref, shared, barriers):
    q_ref, k_ref, v_ref, logits, sinks = padded
    q_shared, o_shared, k_shared, v_shared, lse_shared = shared
    q_ready, k_ready, v_ready, k_free, v_free, turn = barriers
    place = place_of(tiles)
    wg = place.warpgroup
    walk = Walk(lists, place.row(lists, per_key_head))
    full, count = walk.counts()

    def take_turn():
      if warpgroups == 2:
        plgpu.barrier_arrive(turn)
        plgpu.barrier_wait(turn)

    @pl.when(wg < warpgroups)
    def _compute():
      move_registers(warpgroups, memory=False)
      query = place.tile * config.tile_q + wg * ROWS
      mine = (place.batch, pl.ds(query, ROWS), place.head)
      q_tile = q_shared.at[wg]
      plgpu.copy_gmem_to_smem(q_ref.at[mine], q_tile, q_ready.at[wg])
      plgpu.barrier_wait(q_ready.at[wg])
      if warpgroups == 2:
        pl.when(wg == 1)(take_turn)

      def step(i, carry, partial):
        acc, largest, total = carry
        slot = slot_of(i, stages)
        plgpu.barrier_wait(k_ready.at[slot])
        x = wgmma.product(q_tile, wgmma.turned(k_shared.at[slot]), take_turn)
        plgpu.barrier_arrive(k_free.at[slot])
        _, entry = walk.at(i, full, count)
        where = Where(place.batch, place.head, query, entry * tile_k, x.shape, False)
        factor, may_mask = LOG2E, partial or logits.bias is not None or config.hook is not None
        if config.plain and config.scale > 0 and logits.bias is None:
          # The scale goes into the exponent, where it costs nothing.
          factor = LOG2E * config.scale
          allowed = logits.allowed(where) if partial else None
          x = x if allowed is None else jnp.where(allowed, x, -jnp.inf)
        else:
          x = logits(x, where, logits.allowed(where) if partial else None)
        new = jnp.maximum(largest, x.max(axis=1) * factor)
        # -inf (nothing seen) becomes 0, so that exp(-inf - 0) is 0 and not NaN.
        safe = jnp.where(new == -jnp.inf, 0.0, new) if may_mask else new
        decay = jnp.exp2(largest - safe)
        weights = jnp.exp2(x * factor - where.spread(safe, 0))
        acc = acc * lax.broadcast_in_dim(decay, acc.shape, [0])
        total = total * decay + weights.sum(axis=1)
        narrow = weights.astype(dtype)
        acc, total, new, narrow = lax.optimization_barrier((acc, total, new, narrow))
        if warpgroups == 2:
          plgpu.barrier_arrive(turn)
        plgpu.barrier_wait(v_ready.at[slot])
        if warpgroups == 2:
          plgpu.barrier_wait(turn)
        acc = wgmma.add_product(acc, narrow, v_shared.at[slot])
        plgpu.barrier_arrive(v_free.at[slot])
        return acc, new, total

      rows = wgmma.LAYOUT.reduce(1)
      carry = (
        wgmma.filled((ROWS, width), 0.0, wgmma.LAYOUT),
        wgmma.filled((ROWS,), -jnp.inf, rows),
        wgmma.filled((ROWS,), 0.0, rows),
      )
      acc, largest, total = two_loops(full, count, step, carry)
      if warpgroups == 2:
        pl.when(wg == 0)(take_turn)
      if sinks is not None:
        sink = sinks[place.head] * LOG2E
        joint = jnp.maximum(largest, sink)
        safe = jnp.where(joint == -jnp.inf, 0.0, joint)
        decay = jnp.exp2(largest - safe)
        total = total * decay + jnp.exp2(sink - safe)
        acc = acc * lax.broadcast_in_dim(decay, acc.shape, [0])
        largest = safe
      seen = total > 0.0
      divisor = jnp.where(seen, total, 1.0)
      acc = acc * lax.broadcast_in_dim(1.0 / divisor, acc.shape, [0])
      lse = jnp.where(seen, jnp.log(divisor) + largest * (1 / LOG2E), -jnp.inf)
      o_tile = q_tile if o_shared is None else o_shared.at[wg]
      o_tile[...] = acc.astype(dtype)
      lse_shared.at[wg][...] = lse
      plgpu.commit_smem()
      plgpu.copy_smem_to_gmem(o_tile, out_ref.at[mine])
      plgpu.copy_smem_to_gmem(
        lse_shared.at[wg], lse_ref.at[place.batch, place.head, pl.ds(query, ROWS)]
      )
      plgpu.wait_smem_to_gmem(0)

    @pl.when(wg == warpgroups)
    def _move():
      move_registers(warpgroups, memory=True)
      key_head = lax.div(place.head, jnp.int32(per_key_head))

      @pl.loop(0, count)
      def _(i):
        slot = slot_of(i, stages)
        _, entry = walk.at(i, full, count)
        rows = (place.batch, pl.ds(entry * tile_k, tile_k), key_head)
        for ref, tile, ready, free in (
          (k_ref, k_shared, k_ready, k_free),
          (v_ref, v_shared, v_ready, v_free),
        ):
          pl.when(i >= stages)(lambda free=free: plgpu.barrier_wait(free.at[slot]))
          plgpu.copy_gmem_to_smem(ref.at[rows], tile.at[slot], ready.at[slot])

      drain(k_free, count, stages)
      drain(v_free, count, stages)

  ring = plgpu.Barrier(num_barriers=stages)
  free = plgpu.Barrier(num_arrivals=warpgroups, num_barriers=stages)
  out, lse = launch(
    body,
    out_type=(
      jax.ShapeDtypeStruct((batch, length, heads, width), dtype),
      jax.ShapeDtypeStruct((batch, heads, length), jnp.float32),
    ),
    scratch_types=(
      (
        wgmma.shared_tiles(warpgroups, ROWS, depth, dtype=dtype),
        None if width == depth else wgmma.shared_tiles(warpgroups, ROWS, width, dtype=dtype),
        wgmma.shared_tiles(stages, tile_k, depth, dtype=dtype),
        wgmma.shared_tiles(stages, tile_k, width, dtype=dtype),
        plgpu.SMEM((warpgroups, ROWS), jnp.float32),
      ),
      (
        plgpu.Barrier(num_barriers=warpgroups),
        ring,
        ring,
        free,
        free,
        plgpu.Barrier(num_arrivals=2) if warpgroups == 2 else None,
      ),
    ),
    grid=(batch, heads, tiles),
    warpgroups=warpgroups,
  )(padded, call.by_query)
  num_queries = call.q.shape[1]
  return out[:, :num_queries, :, : call.v.shape[3]], lse[:, :, :num_queries]
