"""Attention rollout: the product, its row from the top, what cannot be."""

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from h2g.ops.rollout import attention_rollout
from h2g.ops.rollout import rollout_row


def queries_and_keys(layers=3, batch=2, tokens=9, heads=2, width=4):
  rng = np.random.default_rng(0)
  return rng.standard_normal((2, layers, batch, tokens, heads, width))


def test_the_product_by_hand():
  # Both layers of two tokens swap them; half stays: [[.5, .5], [.5, .5]] each time.
  swap = jnp.broadcast_to(jnp.array([[0.0, 1.0], [1.0, 0.0]]), (2, 1, 3, 2, 2))
  np.testing.assert_allclose(attention_rollout(swap), jnp.full((1, 2, 2), 0.5))
  np.testing.assert_allclose(attention_rollout(swap, residual=0.25)[0, 0], [0.625, 0.375])
  np.testing.assert_allclose(attention_rollout(swap, residual=0.0)[0], np.eye(2))
  # The order matters: the last layer's matrix stands on the left.
  rng = np.random.default_rng(0)
  weights = rng.dirichlet(np.ones(5), (3, 2, 2, 5))
  mixed = 0.5 * np.eye(5) + 0.5 * weights.mean(2)
  got = attention_rollout(jnp.asarray(weights, jnp.float32))
  np.testing.assert_allclose(got, mixed[2] @ mixed[1] @ mixed[0], atol=1e-6)


@pytest.mark.few(2)
@pytest.mark.smoke
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("tokens, row", [(1, 0), (65, 0), (130, 7)])
def test_the_row_from_the_top_is_the_row_of_the_product(tokens, row, dtype):
  q, k = (jnp.asarray(x, dtype) for x in queries_and_keys(tokens=tokens))
  got = rollout_row(q, k, row=row)
  want = contract.in_float64(
    lambda q, k: rollout_row(q, k, row=row, implementation="reference"), q, k
  )[0]
  np.testing.assert_allclose(got, want, atol=1e-5)
  np.testing.assert_allclose(got.sum(-1), 1.0, atol=1e-5)
  assert got.dtype == jnp.float32


def test_it_maps_and_carries_no_gradient():
  q, k = (jnp.asarray(x, jnp.float32) for x in queries_and_keys())
  row = jax.jit(lambda q, k: rollout_row(q, k))
  stacked = jax.jit(jax.vmap(row))(jnp.stack([q, -q]), jnp.stack([k, k]))
  np.testing.assert_allclose(stacked[1], row(-q, k), atol=1e-6)
  slope = jax.grad(lambda q: (row(q, k) ** 2).sum())(q)
  assert not np.asarray(slope).any()


@pytest.mark.parametrize(
  "call, message",
  [
    (lambda q, k: rollout_row(q, k[:, :1]), "must be one"),
    (lambda q, k: rollout_row(q, k, row=9), "row=9 of 9 tokens"),
    (lambda q, k: rollout_row(q, k, residual=1.5), "residual=1.5 is a share"),
    (lambda q, k: attention_rollout(q), r"\[layers, batch, heads, tokens, tokens\]"),
  ],
)
def test_what_cannot_be_is_named(call, message):
  with pytest.raises(ValueError, match=message):
    call(*(jnp.asarray(x, jnp.float32) for x in queries_and_keys()))
