"""Every kernel lowers, forward and backward, for the calls that its benchmark times on a GPU.

The tests of each kernel lower more, and smaller, shapes in the fast tier; edge attention's does
these ones there. One call is refused: the TPU kernel of dense attention takes no bias.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.speed import attention
from experiments.speed import cache
from experiments.speed import linear
from experiments.speed import sparse
from h2g.ops import dispatch
from h2g.ops.linear import retention_decay

PLATFORMS = {"mosaic_gpu": ("gpu", "cuda"), "mosaic_tpu": ("tpu", "tpu")}


def call_of(op, shape, implementation: str):
  """(function of q, k, v[, bias], their shapes): what the script times, by name."""
  if op is linear:
    of_all = (shape.batch, shape.length, shape.heads, shape.width)
    return linear.ours(np.asarray(retention_decay(shape.heads)), implementation), [of_all] * 3
  if op is cache:
    lengths = cache.kept(shape)
    rows = -(-int(lengths.max()) // 128) * 128
    one = (shape.batch, shape.heads, shape.width)
    kept = (shape.batch, shape.key_heads, rows, shape.width)
    decode = cache.ours(implementation)
    return lambda *arrays: decode(*arrays, jnp.asarray(lengths)), [one, kept, kept]
  if op is sparse:
    of_all = (shape.batch, shape.length, shape.heads, shape.width)
    return sparse.ours(shape, implementation), [of_all] * 3
  batch, length, heads, key_heads, width = shape[:5]
  shapes = [(batch, length, n, width) for n in (heads, key_heads, key_heads)]
  if shape.kind == "bias":
    shapes.append((1, heads, length, length))
  return attention.ours(shape, implementation), shapes


@pytest.mark.slow
@pytest.mark.lowering
@pytest.mark.parametrize("implementation", PLATFORMS)
@pytest.mark.parametrize(
  "op, name",
  [(op, name) for op in (attention, sparse, linear, cache) for name in op.SHAPES["gpu"]],
  ids=lambda x: x if isinstance(x, str) else x.__name__.split(".")[-1],
)
def test_what_is_timed_lowers(op, name, implementation):
  function, shapes = call_of(op, op.SHAPES["gpu"][name], implementation)
  arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]

  def total(*arrays):
    return function(*arrays).astype(jnp.float32).sum()

  platform, target = PLATFORMS[implementation]
  step = jax.jit(jax.value_and_grad(total, tuple(range(len(arrays)))))
  if platform == "tpu" and len(arrays) == 4:
    with dispatch.lowering_for(platform), pytest.raises(NotImplementedError, match="bias"):
      jax.eval_shape(step, *arrays)
    return
  with dispatch.lowering_for(platform):
    text = jax.export.export(step, platforms=[target])(*arrays).mlir_module()
  assert {"gpu": "custom_call @mosaic_gpu", "tpu": "custom_call @tpu_custom_call"}[platform] in text
