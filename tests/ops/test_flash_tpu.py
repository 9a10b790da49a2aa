"""TPU kernels of attention: the contract in the interpreter, that they lower, what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from h2g.ops import dispatch
from h2g.ops import masks
from h2g.ops.attention import attention
from tests.ops import contract
from tests.ops.contract import numbers

NAME = "mosaic_tpu"
pytestmark = pytest.mark.usefixtures("interpreted_or_lowered")
B, H, K, D, E = 2, 4, 2, 8, 6


def example(queries, keys):
  """q, k, v, sinks."""
  return [
    numbers(B, queries, H, D),
    numbers(B, keys, K, D),
    numbers(B, keys, K, E, seed=1),
    numbers(H, seed=5),
  ]


def documents(queries, keys):
  ids = lambda n: jnp.asarray(np.stack([np.arange(n) * 3 // n, np.arange(n) * 2 // n]), jnp.int32)
  return masks.segments(ids(queries), ids(keys)) & masks.causal()


def by_head(queries, keys):
  bits = np.random.default_rng(1).random((1, H, queries, keys)) < 0.5
  bits[:, :, 0] = False  # rows with nothing to attend
  return masks.dense(jnp.asarray(bits))


def blocks(queries, keys):
  bits = np.random.default_rng(2).random((1, K, -(-queries // 128), -(-keys // 128))) < 0.6
  return masks.block_table(jnp.asarray(bits.repeat(H // K, 1)), 128, 128) & masks.window(200)


KINDS = dict(
  full=lambda *n: None,
  causal=lambda *n: masks.causal(),
  window=lambda *n: masks.window(30),
  documents=documents,
  by_head=by_head,
  blocks=blocks,
)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("kind", "softcap"))
def case(implementation, q, k, v, sinks=None, *, kind="full", softcap=None):
  found = attention(
    q,
    k,
    v,
    mask=KINDS[kind](q.shape[1], k.shape[1]),
    sinks=sinks,
    softcap=softcap,
    return_lse=True,
    implementation=implementation,
  )
  return contract.with_lse(found)


@pytest.mark.few(2)
@pytest.mark.parametrize(
  "kind, queries, keys, softcap",
  [
    ("full", 1, 1, None),
    ("full", 63, 257, 1.5),
    ("causal", 257, 257, None),
    ("window", 257, 65, None),
    ("documents", 257, 257, None),
    ("by_head", 65, 257, None),
    ("blocks", 257, 257, None),
  ],
)
def test_agrees_with_float64(kind, queries, keys, softcap):
  function = functools.partial(case, kind=kind, softcap=softcap)
  contract.agrees(function, NAME, example(queries, keys)[:3])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_sinks(dtype):
  contract.agrees(functools.partial(case, kind="by_head"), NAME, example(63, 65), dtype=dtype)


@pytest.mark.slow
def test_transforms_and_two_devices():
  function = functools.partial(case, kind="causal")
  contract.transforms(function, NAME, example(37, 37)[:3])
  arrays = example(37, 37)[:3]
  call = functools.partial(attention, mask=masks.causal(), implementation=NAME)
  want = jax.jit(call)(*arrays)
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("x",))
  for spec in (("x",), (None, None, "x")):
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    got = jax.jit(functools.partial(call, sharding=sharding))(*arrays)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_poison_behind_the_lengths_has_no_effect():
  q, k, v, _ = map(jnp.asarray, example(37, 65))
  kept = np.arange(65)[None] < np.array([[40], [0]])
  call = lambda *a: attention(*a, mask=masks.key_padding(jnp.array([40, 0])), implementation=NAME)
  run = jax.jit(lambda *a: contract.value_and_grads(call, *a))
  filled = lambda x, value: jnp.asarray(np.where(kept[..., None, None], x, np.float32(value)))
  got = run(q, filled(k, np.nan), filled(v, np.nan))
  want = run(q, filled(k, 0), filled(v, 0))
  jax.tree.map(np.testing.assert_array_equal, got, want)
  for grad in got[1]:
    np.testing.assert_array_equal(np.asarray(grad)[1], 0)


def test_native_kernel_declines_what_it_does_not_serve():
  q, k, v, _ = (jnp.asarray(x) for x in example(9, 9))
  call = functools.partial(attention, implementation=NAME)
  with pytest.raises(NotImplementedError, match=f"{NAME} serves tpu, and this platform is cpu"):
    call(q, k, v)
  with dispatch.lowering_for("tpu"):
    refused = dict(
      bias=dict(bias=jnp.zeros((1, 1, 9, 9))),
      logits_fn=dict(logits_fn=lambda x, at: x),
      return_entropy=dict(return_entropy=True),
    )
    for name, options in refused.items():
      with pytest.raises(NotImplementedError, match=f"{NAME} cannot serve {name}"):
        call(q, k, v, **options)
    with pytest.raises(NotImplementedError, match=f"{NAME} cannot serve q: float32 or bfloat16"):
      call(*(x.astype(jnp.float16) for x in (q, k, v)))


# The shapes that experiments/speed times: batch, length, heads, key heads, width, mask.
BENCHMARK = dict(
  causal_d64=(4, 2048, 16, 16, 64, masks.causal()),
  causal_d128=(1, 16384, 16, 16, 128, masks.causal()),
  full=(1, 8192, 16, 16, 128, None),
  grouped=(1, 8192, 64, 8, 128, masks.causal()),
  window=(2, 8192, 16, 16, 64, masks.window(1023)),
)


@pytest.mark.lowering
@pytest.mark.parametrize("name", BENCHMARK)
def test_benchmark_shapes_lower_for_tpu(name):
  batch, length, heads, key_heads, width, mask = BENCHMARK[name]
  q = jax.ShapeDtypeStruct((batch, length, heads, width), jnp.bfloat16)
  k = jax.ShapeDtypeStruct((batch, length, key_heads, width), jnp.bfloat16)

  def total(*arrays):
    return attention(*arrays, mask=mask, implementation=NAME).astype(jnp.float32).sum()

  with dispatch.lowering_for("tpu"):
    for function, number in ((total, 1), (jax.value_and_grad(total, (0, 1, 2)), 3)):
      text = jax.export.export(jax.jit(function), platforms=["tpu"])(q, k, k).mlir_module()
      assert text.count("custom_call @tpu_custom_call") == number
