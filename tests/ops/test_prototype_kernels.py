"""The kernels of prototype attention choose what the definition chooses, and lower."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from h2g.ops import dispatch
from h2g.ops.prototype import prototype_attention

KERNELS = {"mosaic_gpu": ("cuda", jnp.bfloat16), "mosaic_tpu": ("tpu", jnp.float32)}


@pytest.fixture(params=KERNELS)
def kernel(request):
  """The name of each kernel that this version of JAX can interpret."""
  request.getfixturevalue("interpreted_gpu" if request.param == "mosaic_gpu" else "interpreted")
  return request.param


def arrays(queries, features, heads, dim, dtype, seed=0):
  rng = np.random.default_rng(seed)
  draw = lambda n: jnp.asarray(rng.standard_normal((2, n, heads, dim)), dtype)
  return draw(queries), draw(features)


@pytest.mark.smoke
@pytest.mark.parametrize("share", [None, 0.05])
@pytest.mark.parametrize(
  "queries, features, heads, dim",
  [(5, 1, 1, 64), (70, 200, 2, 32), (3, 63, 5, 16), (9, 300, 3, 48), (2, 130, 1, 128)],
)
def test_it_chooses_as_the_definition(kernel, queries, features, heads, dim, share):
  q, x = arrays(queries, features, heads, dim, KERNELS[kernel][1])
  mask = None
  if share:
    mask = jnp.asarray(np.random.default_rng(1).random((2, queries, features)) < share)
    mask = mask.at[0, 1].set(False)
  got = prototype_attention(q, x, mask=mask, implementation=kernel)
  want = prototype_attention(q, x, mask=mask, implementation="reference")
  np.testing.assert_array_equal(got.index, want.index)
  np.testing.assert_array_equal(got.prototypes, want.prototypes)


def test_of_equals_the_first_and_nothing_allowed_is_feature_0(kernel):
  q, x = arrays(4, 400, 2, 32, KERNELS[kernel][1])
  x = x.at[:, 200:].set(x[:, :200])  # the same again, in other tiles and splits
  call = lambda mask, rule: prototype_attention(
    q, x, mask=mask, when_empty=rule, implementation=kernel
  )
  assert (call(None, "query").index < 200).all()
  mask = jnp.zeros((2, 4, 400), bool).at[0, 0, 7].set(True)
  found = call(mask, "batch").index
  assert (found[0, :, 0] == 7).all() and not found[0, :, 1:].any()
  poisoned = x.at[:, 9].set(jnp.nan)
  seen = jnp.ones((2, 4, 400), bool).at[:, :, 9].set(False)
  found = prototype_attention(q, poisoned, mask=seen, implementation=kernel)
  np.testing.assert_array_equal(found.index, call(seen, "query").index)


def test_under_vmap(kernel):
  q, x = arrays(5, 130, 2, 32, KERNELS[kernel][1])
  pairs = jax.tree.map(lambda a: jnp.stack([a, a[::-1]]), (q, x))
  call = lambda q, x: prototype_attention(q, x, implementation=kernel).index
  got = jax.jit(jax.vmap(call))(*pairs)
  want = jax.vmap(lambda q, x: prototype_attention(q, x, implementation="reference").index)(*pairs)
  np.testing.assert_array_equal(got, want)


@pytest.mark.few(*(f"shape{at}-{name}-{at == 0}" for at in (0, 1) for name in KERNELS))
@pytest.mark.lowering
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
  "shape", [(1, 100, 16384, 8, 32), (2, 16, 60, 4, 16), (2, 100, 4096, 4, 64)]
)
def test_it_lowers_with_its_gradient(name, shape, masked):
  platform, _ = KERNELS[name]
  batch, queries, features, heads, dim = shape
  q, x = (jax.ShapeDtypeStruct((batch, n, heads, dim), jnp.bfloat16) for n in (queries, features))
  mask = jax.ShapeDtypeStruct((batch, queries, features), bool) if masked else None

  def total(x, q, mask):
    found = prototype_attention(q, x, mask=mask)
    return found.prototypes.astype(jnp.float32).sum()

  with dispatch.lowering_for("gpu" if platform == "cuda" else platform):
    module = jax.export.export(jax.jit(jax.grad(total)), platforms=[platform])(x, q, mask)
  target = "mosaic_gpu" if platform == "cuda" else "tpu_custom_call"
  assert module.mlir_module().count(f"custom_call @{target}") == 1


def test_what_a_kernel_does_not_serve_is_said():
  q, x = arrays(3, 70, 2, 32, jnp.float32)
  with (
    dispatch.interpreting(),
    pytest.raises(NotImplementedError, match=r"no interpreter|float16"),
  ):
    prototype_attention(q, x, implementation="mosaic_gpu")
  with pytest.raises(NotImplementedError, match="serves tpu"):
    prototype_attention(q, x, implementation="mosaic_tpu")
