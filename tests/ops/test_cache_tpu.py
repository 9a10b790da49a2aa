"""The TPU kernel of decode attention: the contract in the interpreter, and that it lowers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from h2g.ops import dispatch
from h2g.ops.cache import decode_attention
from tests.ops import contract
from tests.ops.contract import numbers
from tests.ops.decoding import case
from tests.ops.decoding import ragged

NAME = "mosaic_tpu"
pytestmark = pytest.mark.usefixtures("interpreted_or_lowered")
B, H, K, D, E = 2, 4, 2, 8, 6


def example(rows):
  """q, k, v, sinks."""
  return [numbers(B, H, D), numbers(B, K, rows, D), numbers(B, K, rows, E), numbers(H, seed=5)]


@pytest.mark.few(1)
@pytest.mark.parametrize("rows, options", [(1, {}), (63, dict(softcap=1.5)), (2117, {})])
def test_agrees_with_float64(rows, options):
  contract.agrees(functools.partial(case, **options), NAME, example(rows)[:3])


@pytest.mark.few(1)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_sinks(dtype):
  contract.agrees(case, NAME, example(65), dtype=dtype)


@pytest.mark.slow
def test_transforms_and_two_devices():
  contract.transforms(case, NAME, example(37))
  arrays = example(37)
  call = functools.partial(
    decode_attention, lengths=jnp.asarray(ragged(37)), implementation=NAME, return_lse=True
  )
  want = jax.jit(call)(*arrays[:3])
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("x",))
  for spec in (("x",), (None, "x")):
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    got = jax.jit(functools.partial(call, sharding=sharding))(*arrays[:3])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want)


def test_poison_behind_the_lengths_has_no_effect():
  q, k, v, _ = map(jnp.asarray, example(37))
  kept = np.arange(37)[None, None] < ragged(37)[..., None]
  run = jax.jit(lambda *a: contract.value_and_grads(functools.partial(case, NAME), *a))
  filled = lambda x, value: jnp.asarray(np.where(kept[..., None], x, np.float32(value)))
  got = run(q, filled(k, np.nan), filled(v, np.nan))
  want = run(q, filled(k, 0), filled(v, 0))
  jax.tree.map(np.testing.assert_array_equal, got, want)
  for grad in got[1][1:]:
    np.testing.assert_array_equal(np.asarray(grad)[~kept], 0)


@pytest.mark.lowering
@pytest.mark.parametrize("batch, rows", [(1, 8192), (1, 131072), (8, 32768), (32, 131072)])
@pytest.mark.parametrize("heads", [8, 32])
def test_benchmark_shapes_lower_for_tpu(batch, rows, heads):
  q = jax.ShapeDtypeStruct((batch, heads, 128), jnp.bfloat16)
  k = jax.ShapeDtypeStruct((batch, 8, rows, 128), jnp.bfloat16)
  lengths = jax.ShapeDtypeStruct((batch, 8), jnp.int32)

  def total(q, k, v, lengths):
    found = decode_attention(q, k, v, lengths, return_lse=True, implementation=NAME)
    return found.out.astype(jnp.float32).sum() + found.lse.sum()

  with dispatch.lowering_for("tpu"):
    for function, number in ((total, 1), (jax.value_and_grad(total, (0, 1, 2)), 2)):
      module = jax.export.export(jax.jit(function), platforms=["tpu"])(q, k, k, lengths)
      text = module.mlir_module()
      assert text.count("custom_call @tpu_custom_call") == number
      assert "stablehlo.while" not in text


def test_native_kernel_declines_what_it_does_not_serve():
  q, k, v, _ = (jnp.asarray(x) for x in example(9))
  call = functools.partial(decode_attention, implementation=NAME)
  with pytest.raises(NotImplementedError, match=f"{NAME} serves tpu, and this platform is cpu"):
    call(q, k, v)
  half = [x.astype(jnp.float16) for x in (q, k, v)]
  wide = [jnp.zeros((*x.shape[:-1], 20000)) for x in (q, k, v)]
  ids = jnp.zeros((B, K, 3), jnp.int32)
  with dispatch.lowering_for("tpu"):
    for arrays, options, message in [
      (half, {}, "serves float32 and bfloat16: q is float16"),
      ((q, k, v), dict(ids=ids), "ids would name"),
      ((q, k[:, :, :0], v[:, :, :0]), {}, "room for rows"),
      (wide, {}, "D 20000"),
    ]:
      with pytest.raises(NotImplementedError, match=f"{NAME}.* {message}"):
        jax.eval_shape(lambda *a, options=options: call(*a, **options), *arrays)
      # Without a name the same call is served by another form.
      jax.eval_shape(lambda *a, options=options: decode_attention(*a, **options), *arrays)
