"""The kernel of the gradient of a bias that varies along queries and keys."""

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
from h2g.ops.flash_gpu.logits import Where
from h2g.ops.flash_gpu.moves import drain
from h2g.ops.flash_gpu.moves import launch
from h2g.ops.flash_gpu.moves import move_registers
from h2g.ops.flash_gpu.moves import slot_of
from h2g.ops.flash_gpu.padded import in_whole_tiles
from h2g.ops.flash_gpu.walk import place_of


def d_bias(call: Call, config: Config, saved: Saved) -> Array:
  """The gradient [B|1, H|1, T, S] of a bias that varies along queries and keys, in whole tiles."""
  padded = in_whole_tiles(call, config)
  batch, length, heads, depth = padded.q.shape
  num_keys, key_heads = padded.k.shape[1:3]
  width, dtype = padded.v.shape[3], padded.q.dtype
  entries, bias_heads = call.bias.shape[:2]
  warpgroups = config.tile_q // ROWS
  tiles, columns, keys = length // config.tile_q, num_keys // ROWS, ROWS
  per_list, per_key_head = config.tile_k // keys, heads // key_heads
  repeats_h = heads // bias_heads
  repeats = repeats_h * (batch // entries)
  stages = min(2, repeats)
  d_dtype = call.bias.dtype

  def body(padded, table, saved, out_ref, shared, barriers):
    q_ref, k_ref, v_ref, logits, _ = padded
    q_shared, do_shared, k_shared, v_shared, out_shared = shared
    ready, free = barriers
    here = place_of(tiles * columns)
    wg = here.warpgroup
    tile = lax.div(here.tile, jnp.int32(columns))
    column = here.tile - tile * columns

    def at(repeat):
      """(batch entry, head, whether anything attends) of a repeat."""
      of_batch = lax.div(repeat, jnp.int32(repeats_h))
      b = of_batch if entries == 1 else here.batch
      h = repeat - of_batch * repeats_h if bias_heads == 1 else here.head
      kind = table[
        b if table.shape[0] > 1 else 0,
        lax.div(h, jnp.int32(per_key_head)) if table.shape[1] > 1 else 0,
        tile,
        lax.div(column, jnp.int32(per_list)),
      ]
      return b, h, kind != 0

    @pl.when(wg < warpgroups)
    def _compute():
      move_registers(warpgroups, memory=False)
      query = tile * config.tile_q + wg * ROWS

      def step(repeat, carry):
        b, h, some = at(repeat)

        def add(carry):
          acc, used = carry
          slot = slot_of(used, stages)
          vector = (b, h, pl.ds(query, ROWS))
          rows = [
            wgmma.load(ref.at[vector], wgmma.LAYOUT.reduce(1)) for ref in (saved.lse, saved.delta)
          ]
          plgpu.barrier_wait(ready.at[slot])
          q_tile, do_tile = q_shared.at[slot, wg], do_shared.at[slot, wg]
          k_tile, v_tile = k_shared.at[slot], v_shared.at[slot]
          x, d_weights = wgmma.two_products(
            q_tile, wgmma.turned(k_tile), do_tile, wgmma.turned(v_tile)
          )
          plgpu.barrier_arrive(free.at[slot])
          where = Where(b, h, query, column * keys, x.shape, False)
          _, gradient = weights_and_gradient(logits, x, d_weights, rows, where, True)
          return acc + gradient, used + 1

        return lax.cond(some, add, lambda carry: carry, carry)

      carry = wgmma.filled((ROWS, keys), 0.0, wgmma.LAYOUT), jnp.int32(0)
      acc, _ = lax.fori_loop(0, repeats, step, carry)
      out_shared.at[wg][...] = acc.astype(d_dtype)
      plgpu.commit_smem()
      part = (here.batch, here.head, pl.ds(query, ROWS), pl.ds(column * keys, keys))
      plgpu.copy_smem_to_gmem(out_shared.at[wg], out_ref.at[part])
      plgpu.wait_smem_to_gmem(0)

    @pl.when(wg == warpgroups)
    def _move():
      move_registers(warpgroups, memory=True)

      def step(repeat, used):
        b, h, some = at(repeat)

        @pl.when(some)
        def _():
          slot = slot_of(used, stages)
          pl.when(used >= stages)(lambda: plgpu.barrier_wait(free.at[slot]))
          for i in range(warpgroups):
            rows = (b, pl.ds(tile * config.tile_q + i * ROWS, ROWS), h)
            plgpu.copy_gmem_to_smem(q_ref.at[rows], q_shared.at[slot, i], ready.at[slot])
            plgpu.copy_gmem_to_smem(saved.do.at[rows], do_shared.at[slot, i], ready.at[slot])
          rows = (b, pl.ds(column * keys, keys), lax.div(h, jnp.int32(per_key_head)))
          plgpu.copy_gmem_to_smem(k_ref.at[rows], k_shared.at[slot], ready.at[slot])
          plgpu.copy_gmem_to_smem(v_ref.at[rows], v_shared.at[slot], ready.at[slot])

        return used + some.astype(jnp.int32)

      drain(free, lax.fori_loop(0, repeats, step, jnp.int32(0)), stages)

  return launch(
    body,
    out_type=jax.ShapeDtypeStruct((entries, bias_heads, length, num_keys), d_dtype),
    scratch_types=(
      (
        wgmma.shared_tiles(stages, warpgroups, ROWS, depth, dtype=dtype),
        wgmma.shared_tiles(stages, warpgroups, ROWS, width, dtype=dtype),
        wgmma.shared_tiles(stages, keys, depth, dtype=dtype),
        wgmma.shared_tiles(stages, keys, width, dtype=dtype),
        wgmma.shared_tiles(warpgroups, ROWS, keys, dtype=d_dtype),
      ),
      (
        plgpu.Barrier(num_arrivals=2 * warpgroups + 2, num_barriers=stages),
        plgpu.Barrier(num_arrivals=warpgroups, num_barriers=stages),
      ),
    ),
    grid=(entries, bias_heads, tiles * columns),
    warpgroups=warpgroups,
  )(padded, call.table, saved)
