"""What Mosaic GPU kernels do on chip, in one form for JAX's versions and for its interpreter.

Pallas' interpreter knows neither wgmma nor layouts, so each function has a plain twin there.
"""

from collections.abc import Callable

import jax
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from h2g.ops import dispatch

LAYOUT = plgpu.Layout.WGMMA  # of results of the tensor cores
_OLD = jax.__version_info__ < (0, 11)
_TRANSPOSE = plgpu.transpose_ref if _OLD else None  # which later versions do not have
_WHOLE = ((),) if _OLD else ()  # an index that later versions do not take


def load(ref, layout=LAYOUT) -> Array:
  """What a reference holds, in a layout; None: there are none, as in the interpreter."""
  if layout is None or dispatch.interpreted():
    return ref[...]
  return plgpu.load(ref, *_WHOLE, layout=layout, optimized=False)


def iota(shape: tuple[int, int], axis: int) -> Array:
  """int32 0, 1, ... along an axis, in LAYOUT."""
  if dispatch.interpreted():
    return jax.lax.broadcasted_iota(jnp.int32, shape, axis)
  return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=LAYOUT)


def filled(shape: tuple[int, ...], value: float, layout=None) -> Array:
  """float32; without a layout that of the results, or of their rows."""
  array = jnp.full(shape, value, jnp.float32)
  if dispatch.interpreted():
    return array
  return plgpu.layout_cast(array, layout or (LAYOUT if len(shape) == 2 else LAYOUT.reduce(1)))


def shared_tiles(*shape: int, dtype):
  """Shared memory for matrices that TMA fills and the tensor cores read."""
  minor = 128 // jnp.dtype(dtype).itemsize
  transforms = (plgpu.TilingTransform((8, minor)), plgpu.SwizzleTransform(128))
  return plgpu.SMEM(shape, dtype, transforms=transforms)


def turned(ref):
  """The transpose of a tile in shared memory."""
  if dispatch.interpreted():  # whose older versions have no transposed tiles
    return ref[...].T
  return ref.transpose((1, 0)) if _TRANSPOSE is None else _TRANSPOSE(ref, (1, 0))


def product(a, b, issued: Callable[[], None] | None = None) -> Array:
  """a b of two tiles in shared memory, float32 in registers; `issued` runs while it computes."""
  if dispatch.interpreted():
    issued and issued()
    return jnp.dot(a[...], b[...], preferred_element_type=jnp.float32)

  def compute(acc):
    plgpu.wgmma(acc, a, b)
    issued and issued()
    return acc[...]

  return pl.run_scoped(compute, plgpu.ACC((a.shape[0], b.shape[1]), jnp.float32))


def two_products(a, b, c, d) -> tuple[Array, Array]:
  """(a b, c d) of tiles in shared memory, waited for together."""
  if dispatch.interpreted():
    return product(a, b), product(c, d)

  def compute(one, other):
    plgpu.wgmma(one, a, b)
    plgpu.wgmma(other, c, d)
    return one[...], other[...]

  shapes = ((x.shape[0], y.shape[1]) for x, y in ((a, b), (c, d)))
  return pl.run_scoped(compute, *(plgpu.ACC(shape, jnp.float32) for shape in shapes))


def add_product(total: Array, a, b) -> Array:
  """total + a b, accumulated in place; b stands in shared memory, a there or in registers."""
  if dispatch.interpreted():  # it has neither such operands nor such accumulators
    return total + jnp.dot(a[...], b[...], preferred_element_type=jnp.float32)
  return pl.run_state(lambda acc: plgpu.wgmma(acc, a, b))(plgpu.ACC.init(total))
