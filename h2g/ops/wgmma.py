"""Arrays on chip in the Mosaic GPU kernels, one form for JAX's versions and for its interpreter.

Pallas' interpreter knows neither wgmma nor layouts, so each function has a plain twin there.
"""

import jax
from jax import Array
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from h2g.ops import dispatch

LAYOUT = plgpu.Layout.WGMMA  # of results of the tensor cores
_WHOLE = ((),) if jax.__version_info__ < (0, 11) else ()  # an index that later versions do not take


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
