"""Multi-query pooling: the contract, and that it equals multi-head pooling."""

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from h2g.ops import dispatch
from h2g.ops.pool import multi_query_pool
from h2g.ops.pool import queries_of_multi_head


def arrays(batch=2, tokens=7, dim=6, num_queries=3, width=12):
  rng = np.random.default_rng(0)
  shapes = (batch, tokens, dim), (num_queries, dim), (dim, width)
  return [rng.standard_normal(shape) for shape in shapes]


def case(implementation, x, queries, values, mask=None):
  return multi_query_pool(x, queries, values, mask=mask, implementation=implementation).out


@pytest.mark.few("65-float32")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("tokens", [1, 63, 65, 257])
def test_xla_agrees_with_float64(tokens, dtype):
  contract.agrees(case, "xla", arrays(tokens=tokens), dtype=dtype)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_gradients_and_transforms(implementation):
  contract.matches_finite_differences(case, implementation, arrays())
  contract.transforms(case, implementation, arrays())


def test_two_devices():
  contract.shards(case, "xla", arrays(), (0, None, None))


def test_masked_tokens_have_no_effect_and_no_token_gives_zeros():
  x, queries, values = (jnp.asarray(a, jnp.float32) for a in arrays())
  mask = jnp.array([[True] * 4 + [False] * 3, [False] * 7])
  poisoned = jnp.where(mask[:, :, None], x, jnp.nan)
  got = multi_query_pool(poisoned, queries, values, mask=mask)
  want = multi_query_pool(x[:, :4], queries, values)
  np.testing.assert_allclose(got.out[0], want.out[0], rtol=1e-5, atol=1e-6)
  assert not np.asarray(got.out[1]).any() and not np.asarray(got.weights[1]).any()
  total = lambda *operands: multi_query_pool(*operands, mask=mask).out.sum()
  for grads in jax.grad(total, (0, 1, 2))(poisoned, queries, values):
    assert np.isfinite(grads).all()
  reference = multi_query_pool(x, queries, values, mask=mask, implementation="reference")
  np.testing.assert_allclose(got.weights, reference.weights, rtol=1e-5, atol=1e-6)


def test_it_is_multi_head_pooling_with_one_input_vector():
  rng = np.random.default_rng(1)
  dim, heads, tokens = 24, 4, 11
  x, u = rng.standard_normal((2, tokens, dim)), rng.standard_normal(dim)
  w_q, w_k, w_v = rng.standard_normal((3, dim, dim)) / dim**0.5
  # Multi-head cross-attention, head by head.
  d = dim // heads
  outs, maps = [], []
  for j in range(heads):
    cut = slice(j * d, (j + 1) * d)
    scores = (x @ w_k[:, cut]) @ (u @ w_q[:, cut]) / np.sqrt(d)
    weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    maps.append(weights)
    outs.append(np.einsum("bn,bne->be", weights, x @ w_v[:, cut]))
  f32 = lambda a: jnp.asarray(a, jnp.float32)
  queries = queries_of_multi_head(f32(u), f32(w_q), f32(w_k), heads)
  got = multi_query_pool(f32(x), queries, f32(w_v))
  np.testing.assert_allclose(got.weights, np.stack(maps, 1), atol=1e-5)
  np.testing.assert_allclose(got.out, np.concatenate(outs, -1), rtol=1e-5, atol=1e-5)


@pytest.mark.smoke
@pytest.mark.few("float32-True-12-130", "bfloat16-False-3-7")
@pytest.mark.parametrize("batch, tokens", [(3, 7), (12, 130)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_kernel_agrees_forward_and_backward(interpreted, batch, tokens, masked, dtype):
  rounded = [jnp.asarray(a, dtype) for a in arrays(batch, tokens, dim=32, num_queries=4, width=16)]
  mask = None
  if masked:
    mask = jnp.asarray(np.random.default_rng(2).random((batch, tokens)) < 0.5).at[0].set(False)
    rounded[0] = rounded[0].at[1].set(jnp.where(mask[1][:, None], rounded[0][1], jnp.nan))
  shown = jnp.asarray(np.random.default_rng(3).standard_normal((batch, 4, tokens)), jnp.float32)

  def results(form, cast=lambda a: a):
    def total(*operands):
      found = multi_query_pool(*operands, mask=mask, implementation=form)
      value = jnp.sum(found.out.astype(jnp.float32) ** 2) + jnp.sum(found.weights * shown)
      return value, found

    grads, found = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(*map(cast, rounded))
    return (*found, *grads)

  got, want = results("mosaic_tpu"), results("reference", lambda a: a.astype(jnp.float32))
  for one, other in zip(got, want):
    one, other = np.asarray(one, np.float32), np.asarray(other)
    scale = np.abs(other).max()
    np.testing.assert_allclose(one, other, atol=scale * (1e-5 if dtype == jnp.float32 else 2e-2))


@pytest.mark.lowering
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(512, 196, 768, 32, 768), (3, 17, 96, 8, 96)])
def test_it_lowers_with_its_gradient(shape, masked):
  batch, tokens, dim, num, width = shape
  abstract = lambda *shape, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(shape, dtype)
  operands = abstract(batch, tokens, dim), abstract(num, dim), abstract(dim, width)
  mask = abstract(batch, tokens, dtype=bool) if masked else None
  call = lambda x, q, v, mask: multi_query_pool(x, q, v, mask=mask).out.astype(jnp.float32).sum()
  with dispatch.lowering_for("tpu"):
    graded = jax.jit(jax.grad(call, (0, 1, 2)))
    module = jax.export.export(graded, platforms=["tpu"])(*operands, mask)
  assert module.mlir_module().count("custom_call @tpu_custom_call") == 2


def test_what_the_kernel_does_not_serve_is_said():
  x, queries, values = (jnp.asarray(a, jnp.float32) for a in arrays())
  call = lambda x: multi_query_pool(x, queries, values, implementation="mosaic_tpu")
  with pytest.raises(NotImplementedError, match="serves tpu"):
    call(x)
  with dispatch.interpreting(), pytest.raises(NotImplementedError, match="all tokens of an image"):
    jax.eval_shape(call, jax.ShapeDtypeStruct((1, 1 << 20, 6), jnp.float32))


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(num_queries=5), "5 queries do not divide the width 12"),
    (dict(tokens=7, dim=6), None),
  ],
)
def test_shapes_that_disagree(change, message):
  x, queries, values = (jnp.asarray(a, jnp.float32) for a in arrays(**change))
  if message:
    with pytest.raises(ValueError, match=message):
      multi_query_pool(x, queries, values)
    return
  with pytest.raises(ValueError, match="share the width D"):
    multi_query_pool(x[..., :5], queries, values)
  with pytest.raises(ValueError, match="mask"):
    multi_query_pool(x, queries, values, mask=jnp.ones((2, 3), bool))
  with pytest.raises(NotImplementedError, match="no implementation 'fast'"):
    multi_query_pool(x, queries, values, implementation="fast")
