"""The GPU kernel of decode attention: it lowers, and the contract where JAX can interpret it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from h2g.ops import cache
from h2g.ops import dispatch
from h2g.ops.cache import decode_attention
from tests.ops import contract
from tests.ops.contract import numbers
from tests.ops.decoding import case
from tests.ops.decoding import ragged

NAME = "mosaic_gpu"
B, H, K, D, E = 2, 4, 2, 64, 128


def example(rows, sinks=True):
  """q, k, v[, sinks]."""
  arrays = [numbers(B, H, D), numbers(B, K, rows, D), numbers(B, K, rows, E)]
  return [*arrays, numbers(H, seed=5)] if sinks else arrays


@pytest.mark.smoke
@pytest.mark.parametrize("rows, options", [(1, {}), (63, {}), (64, {}), (328, dict(softcap=1.5))])
def test_agrees_with_float64(rows, options, interpreted_gpu):
  arrays = example(rows, sinks=rows == 63)
  contract.agrees(functools.partial(case, **options), NAME, arrays, dtype=jnp.bfloat16)


@pytest.mark.smoke
def test_poison_behind_the_lengths_has_no_effect_and_bits_are_the_same(interpreted_gpu):
  q, k, v = (x.astype(jnp.bfloat16) for x in map(jnp.asarray, example(328, sinks=False)))
  kept = jnp.asarray(np.arange(328)[None, None] < ragged(328)[..., None])[..., None]
  filled = lambda x, value: jnp.where(kept, x, jnp.asarray(value, x.dtype))
  got = case(NAME, q, filled(k, jnp.nan), filled(v, jnp.nan))
  np.testing.assert_array_equal(got, case(NAME, q, filled(k, 0), filled(v, 0)))
  np.testing.assert_array_equal(got, case(NAME, q, filled(k, jnp.nan), filled(v, jnp.nan)))


@pytest.mark.few("8-None-1-8192", "32-30.0-8-32768")
@pytest.mark.lowering
@pytest.mark.parametrize("batch, rows", [(1, 8192), (1, 131072), (8, 32768), (32, 131072)])
@pytest.mark.parametrize("heads, softcap", [(8, None), (32, 30.0)])
def test_benchmark_shapes_lower_for_cuda(batch, rows, heads, softcap):
  q = jax.ShapeDtypeStruct((batch, heads, 128), jnp.bfloat16)
  k = jax.ShapeDtypeStruct((batch, 8, rows, 128), jnp.bfloat16)
  lengths = jax.ShapeDtypeStruct((batch, 8), jnp.int32)

  def total(q, k, v, lengths):
    found = decode_attention(
      q, k, v, lengths, softcap=softcap, return_lse=True, implementation=NAME
    )
    return found.out.astype(jnp.float32).sum() + found.lse.sum()

  with dispatch.lowering_for("gpu"):
    for function in (total, jax.value_and_grad(total, (0, 1, 2))):
      module = jax.export.export(jax.jit(function), platforms=["cuda"])(q, k, k, lengths)
      text = module.mlir_module()
      assert text.count("custom_call @mosaic_gpu") == 1  # the gradient is XLA's
      assert "stablehlo.while" not in text


@pytest.mark.few("104-widths0", "20-widths1", "104-widths2")
@pytest.mark.lowering
@pytest.mark.parametrize("widths", [(64, 64), (192, 128), (256, 256)])
@pytest.mark.parametrize("rows", [20, 104])
def test_other_shapes_lower_for_cuda(widths, rows):
  q, k, v = (
    jax.ShapeDtypeStruct(shape, jnp.float16)
    for shape in ((3, 2, 30, widths[0]), (3, 2, 2, rows, widths[0]), (3, 2, 2, rows, widths[1]))
  )
  call = jax.vmap(functools.partial(decode_attention, implementation=NAME))
  with dispatch.lowering_for("gpu"):
    text = jax.export.export(jax.jit(call), platforms=["cuda"])(q, k, v).mlir_module()
  assert text.count("custom_call @mosaic_gpu") == 1


def test_sizes_are_closed_forms():
  assert cache.mosaic_gpu._stages(128, 128, jnp.bfloat16) == 2
  assert cache.mosaic_gpu._stages(64, 64, jnp.bfloat16) == 4
  assert [cache.mosaic_gpu._split(n, 8) for n in (8192, 131072, 2**24)] == [256, 960, 4096]


def test_kernel_declines_what_it_does_not_serve():
  half = lambda *shape: jnp.zeros(shape, jnp.bfloat16)
  q, k, v = half(B, H, D), half(B, K, 72, D), half(B, K, 72, E)
  call = functools.partial(decode_attention, implementation=NAME)
  with pytest.raises(NotImplementedError, match=f"{NAME} serves gpu, and this platform is cpu"):
    call(q, k, v)
  ids = jnp.zeros((B, K, 3), jnp.int32)
  with dispatch.lowering_for("gpu"):
    for arrays, options, message in [
      ([x.astype(jnp.float32) for x in (q, k, v)], {}, "serves bfloat16 and float16: q is float32"),
      ((q, k, v), dict(ids=ids), "ids would name"),
      ((q, k[:, :, :0], v[:, :, :0]), {}, "room for rows"),
      ((q, k[:, :, :67], v[:, :, :67]), {}, "multiples of 8 rows"),
      ((q[..., :40], k[..., :40], v), {}, "D 40, E 128"),
      ((half(B, 130, D), k, v), {}, "up to 64 heads per key head: got 130 and 2"),
    ]:
      with pytest.raises(NotImplementedError, match=f"{NAME} .*{message}"):
        jax.eval_shape(lambda *a, options=options: call(*a, **options), *arrays)
      # Without a name the same call is served by another form.
      jax.eval_shape(lambda *a, options=options: decode_attention(*a, **options), *arrays)
