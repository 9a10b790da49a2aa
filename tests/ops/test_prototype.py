"""Prototype attention: the contract, brute force, and queries that may take nothing."""

import contract
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from h2g.ops.prototype import prototype_attention
from h2g.ops.prototype import random_prototypes


def arrays(batch=2, queries=5, features=7, heads=3, dim=4, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.standard_normal((batch, n, heads, dim)) for n in (queries, features)]


def masked(shape, share=0.5):
  return jnp.asarray(np.random.default_rng(1).random(shape) < share)


def case(implementation, q, x):
  mask = masked((q.shape[0], q.shape[1], x.shape[1]))
  return prototype_attention(q, x, mask=mask, implementation=implementation).prototypes


def brute_force(q, x, mask):
  """Loops; a query that may take nothing may take all."""
  b, num, h, _ = q.shape
  index = np.zeros((b, h, num), np.int32)
  for i, k, j in np.ndindex(b, h, num):
    allowed = np.flatnonzero(mask[i, j]) if mask[i, j].any() else np.arange(x.shape[1])
    index[i, k, j] = max(allowed, key=lambda n: (x[i, n, k] @ q[i, j, k], -n))
  return index


@pytest.mark.smoke
@pytest.mark.parametrize("features", [1, 65])
@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_it_is_brute_force(implementation, features):
  q, x = arrays(features=features)
  mask = np.asarray(masked((2, 5, features), share=0.1)).copy()
  mask[0, 3] = False
  f32 = lambda a: jnp.asarray(a, jnp.float32)
  call = jax.jit(lambda q, x, m: prototype_attention(q, x, mask=m, implementation=implementation))
  got = call(f32(q), f32(x), jnp.asarray(mask))
  want = brute_force(q, x, mask)
  np.testing.assert_array_equal(got.index, want)
  taken = np.take_along_axis(x, want.swapaxes(1, 2)[..., None], axis=1)
  np.testing.assert_array_equal(got.prototypes, taken.astype(np.float32))


def test_the_contract(monkeypatch):
  # Blocks of 128: the loop, the block before it and the rest after it.
  monkeypatch.setattr("h2g.ops.prototype.xla.BLOCK_NUMBERS", 128)
  contract.agrees(case, "xla", arrays(features=300))
  contract.transforms(case, "xla", arrays(features=300))
  contract.shards(case, "xla", arrays(), (0, 0))
  # bfloat16: the reference in float64 may choose another of two near ones, so itself in float32.
  q, x = (jnp.asarray(a, jnp.bfloat16) for a in arrays(features=300))
  got = prototype_attention(q, x)
  want = prototype_attention(*(a.astype(jnp.float32) for a in (q, x)), implementation="reference")
  np.testing.assert_array_equal(got.index, want.index)
  assert got.prototypes.dtype == jnp.bfloat16


def test_gradients_pass_through_what_is_taken_alone():
  q, x = (jnp.asarray(a, jnp.float32) for a in arrays())
  out, pull = jax.vjp(lambda q, x: prototype_attention(q, x).prototypes, q, x)
  dq, dx = pull(jnp.ones_like(out))
  index = prototype_attention(q, x).index
  assert not np.asarray(dq).any()
  counts = np.stack([np.bincount(row, minlength=7) for row in np.asarray(index).reshape(6, -1)])
  np.testing.assert_allclose(
    dx, np.broadcast_to(counts.reshape(2, 3, 7, 1), (2, 3, 7, 4)).swapaxes(1, 2)
  )


def test_queries_that_may_take_nothing():
  q, x = (jnp.asarray(a, jnp.float32) for a in arrays())
  mask = jnp.zeros((2, 5, 7), bool).at[0, 0, 4].set(True)
  free = prototype_attention(q, x).index
  by_query = prototype_attention(q, x, mask=mask).index
  np.testing.assert_array_equal(by_query[:, :, 1:], free[:, :, 1:])
  assert (by_query[0, :, 0] == 4).all()
  by_batch = prototype_attention(q, x, mask=mask, when_empty="batch")
  assert (by_batch.index[0, :, 0] == 4).all() and not by_batch.index[0, :, 1:].any()
  np.testing.assert_array_equal(by_batch.index[1], free[1])
  for rule in ("query", "batch"):
    loss = lambda q, x, rule=rule: prototype_attention(
      q, x, mask=jnp.zeros_like(mask), when_empty=rule
    ).prototypes.sum()
    assert all(np.isfinite(g).all() for g in jax.grad(loss, (0, 1))(q, x))


def test_what_no_query_may_take_has_no_effect():
  q, x = (jnp.asarray(a, jnp.float32) for a in arrays())
  mask = jnp.ones((2, 5, 7), bool).at[:, :, 2].set(False)
  value = lambda x: prototype_attention(q, x, mask=mask).prototypes.sum()
  poisoned = x.at[:, 2].set(jnp.nan)
  assert jnp.isfinite(value(poisoned))
  np.testing.assert_array_equal(jax.grad(value)(poisoned), jax.grad(value)(x))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**16))
def test_shuffled_features_are_chosen_alike(seed):
  q, x = (jnp.asarray(a, jnp.float32) for a in arrays(seed=seed))
  mask = masked((2, 5, 7))
  order = np.random.default_rng(seed).permutation(7)
  got = prototype_attention(q, x[:, order], mask=mask[:, :, order])
  np.testing.assert_array_equal(got.prototypes, prototype_attention(q, x, mask=mask).prototypes)


def test_random_prototypes_are_allowed_and_cover_what_is():
  x = jnp.asarray(arrays(features=4, batch=1)[1], jnp.float32)
  mask = jnp.array([[[True, False, True, False], [False] * 4]])
  draw = jax.vmap(lambda key: random_prototypes(key, x, 2, mask=mask).index)
  index = np.asarray(draw(jax.random.split(jax.random.key(0), 64)))
  assert set(index[..., 0].flat) == {0, 2} and set(index[..., 1].flat) == {0, 1, 2, 3}


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(x=(2, 7, 3, 5)), r"must be \[B, Q, H, D\]"),
    (dict(x=(2, 0, 3, 4)), "no features to choose from"),
    (dict(mask=(2, 5, 8)), r"must be bool \[B, Q, N\]"),
    (dict(when_empty="never"), "choose from query, batch"),
  ],
)
def test_what_cannot_be_used(change, message):
  x = jnp.zeros(change.get("x", (2, 7, 3, 4)))
  mask = jnp.ones(change.get("mask", (2, 5, 7)), bool)
  with pytest.raises(ValueError, match=message):
    prototype_attention(
      jnp.zeros((2, 5, 3, 4)), x, mask=mask, when_empty=change.get("when_empty", "query")
    )
