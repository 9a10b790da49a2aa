"""What warpgroups do with memory: rings of tiles, registers, the launch."""

import functools

from jax import Array
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from h2g.ops import dispatch

_SHARED_MEMORY = 220 << 10  # bytes of tiles in a program; barriers and row vectors take some of 227


def launch(body, *, out_type, scratch_types, grid, warpgroups: int):
  """A kernel with `warpgroups` that compute and one that moves memory.

  The last axis of the grid varies fastest: tiles of one head run together and share its k and v in
  the L2 cache.
  """
  options = {}
  if dispatch.interpreted():
    options["interpret"] = plgpu_interpreter()
  return plgpu.kernel(
    body,
    out_type=out_type,
    scratch_types=scratch_types,
    grid=grid,
    grid_names=("batch", "heads", "tiles"),
    num_threads=warpgroups + 1,
    thread_name="warpgroup",
    compiler_params=plgpu.CompilerParams(approx_math=True),
    **options,
  )


def plgpu_interpreter():
  """Parameters that make a kernel run in Mosaic GPU's interpreter."""
  from jax._src.pallas.mosaic_gpu.interpret import params  # public in no version so far

  return params.InterpretGPUParams()


def move_registers(warpgroups: int, memory: bool) -> None:
  """Moves registers from the warpgroup that waits to those that compute."""
  if warpgroups == 2 and not dispatch.interpreted():
    plgpu.set_max_registers(40 if memory else 232, action="decrease" if memory else "increase")


def ring_stages(resident: int, per_stage: int) -> int:
  """Slots of the ring: as many as fit, at most four."""
  return max(2, min(4, (_SHARED_MEMORY - resident) // per_stage))


def slot_of(step: Array, stages: int) -> Array:
  return lax.rem(step, jnp.int32(stages))


def drain(free, used: Array, stages: int) -> None:
  """Waits until all slots of a ring that were filled have been read."""
  for slot in range(stages):
    pl.when(slot < used)(functools.partial(plgpu.barrier_wait, free.at[slot]))
