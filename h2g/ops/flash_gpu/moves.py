"""What a warpgroup does with memory and tensor cores: products, rings, barriers, the launch."""

from collections.abc import Callable
import functools

import jax
from jax import Array
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from h2g.ops import dispatch

_SHARED_MEMORY = 220 << 10  # bytes of tiles in a program; barriers and row vectors take some of 227
_OLD = jax.__version_info__ < (0, 11)
_TURN = plgpu.transpose_ref if _OLD else None


def _turned(ref):
  """The transpose of a tile in shared memory; older versions of JAX have a function for it."""
  if _TURN is not None:
    return _TURN(ref, (1, 0))
  return ref.transpose((1, 0))


def dot(a, b, shape: tuple[int, int], issued: Callable[[], None] | None = None) -> Array:
  """a b^T of two tiles in shared memory, float32 in registers; `issued` runs while it computes."""
  if dispatch.interpreted():  # whose older versions have no transposed tiles
    issued and issued()
    return jnp.dot(a[...], b[...].T, preferred_element_type=jnp.float32)

  def compute(acc):
    plgpu.wgmma(acc, a, _turned(b))
    issued and issued()
    return acc[...]

  return pl.run_scoped(compute, plgpu.ACC(shape, jnp.float32))


def two_dots(a, b, c, d, shape: tuple[int, int]) -> tuple[Array, Array]:
  """(a b^T, c d^T) of tiles in shared memory, waited for together."""
  if dispatch.interpreted():
    return dot(a, b, shape), dot(c, d, shape)

  def compute(one, other):
    plgpu.wgmma(one, a, _turned(b))
    plgpu.wgmma(other, c, _turned(d))
    return one[...], other[...]

  return pl.run_scoped(compute, *(plgpu.ACC(shape, jnp.float32),) * 2)


def add_dot(total: Array, a: Array, b) -> Array:
  """total + a b, accumulated in place; the left operand comes from registers."""
  if dispatch.interpreted():  # the interpreter has neither such operands nor such accumulators
    return total + jnp.dot(a, b[...], preferred_element_type=jnp.float32)
  return pl.run_state(lambda acc: plgpu.wgmma(acc, a, b))(plgpu.ACC.init(total))


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
