"""Multi-query pooling: the contract, and that it equals multi-head pooling."""

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
  grads = jax.grad(lambda x: multi_query_pool(x, queries, values, mask=mask).out.sum())(poisoned)
  assert np.isfinite(np.asarray(grads)[np.asarray(mask)]).all()
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
