"""Pair-wise and global-local cross-attention: what they equal, and what cannot be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from h2g.ops.attention import attention
from h2g.ops.cross import derangement
from h2g.ops.cross import global_local_attention
from h2g.ops.cross import pairwise_attention
from h2g.ops.cross import selected_queries


def operands(batch=4, tokens=9, heads=2, width=4):
  rng = np.random.default_rng(0)
  return [jnp.asarray(x, jnp.float32) for x in rng.normal(size=(3, batch, tokens, heads, width))]


@pytest.mark.smoke
def test_a_pair_is_self_attention_where_the_other_adds_nothing():
  q, k, v = operands()
  want = attention(q, k, v)
  itself = jnp.arange(4)
  np.testing.assert_allclose(pairwise_attention(q, k, v, itself), want, atol=1e-5)
  partner = derangement(jax.random.key(0), 4)
  own_only = (jnp.arange(18) < 9)[None, None, None]
  masked = pairwise_attention(q, k, v, partner, mask=own_only)
  np.testing.assert_allclose(masked, want, atol=1e-5)
  assert jnp.abs(pairwise_attention(q, k, v, partner) - want).max() > 0.1


def test_a_pair_is_one_softmax_over_both_images():
  q, k, v = (np.asarray(x, np.float64) for x in operands())
  partner = np.array([2, 0, 3, 1])
  for others in (None, (k[::-1] * 2, v[::-1] + 1)):
    other_k, other_v = (k, v) if others is None else others
    keys, values = (
      np.concatenate([k, other_k[partner]], 1),
      np.concatenate([v, other_v[partner]], 1),
    )
    scores = np.exp(np.einsum("bthd,bshd->bhts", q, keys) / 2)
    want = np.einsum("bhts,bshd->bthd", scores / scores.sum(-1, keepdims=True), values)
    f32 = lambda *arrays: [jnp.asarray(x, jnp.float32) for x in arrays]
    given = None if others is None else tuple(f32(*others))
    got = pairwise_attention(*f32(q, k, v), jnp.asarray(partner), others=given)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_selected_queries_are_rows_of_self_attention():
  q, k, v = operands()
  scores = jnp.asarray(np.random.default_rng(1).random((4, 9)), jnp.float32)
  got = global_local_attention(q, k, v, scores, 0.3)
  assert got.ids.shape == (4, 1 + 3)  # of eight candidates, 2.4 rounded up
  every = attention(q, k, v)
  for image, ids in enumerate(np.asarray(got.ids)):
    best = 1 + np.argsort(-np.asarray(scores[image, 1:]))[:3]
    assert ids.tolist() == [0, *best]
    np.testing.assert_allclose(got.out[image], every[image, ids], atol=1e-6)


@pytest.mark.parametrize("ratio, count", [(1e-6, 1), (0.1, 1), (0.11, 2), (0.3, 3), (1.0, 10)])
def test_how_many_are_selected(ratio, count):
  ids = selected_queries(jnp.zeros((1, 11)), ratio)
  assert ids.shape == (1, 1 + count) and ids[0].tolist() == list(range(1 + count))
  two = selected_queries(jnp.zeros((1, 11)), ratio, always_keep=(3, 0))
  assert two[0, :2].tolist() == [3, 0] and len(set(two[0].tolist())) == two.shape[1]


def test_nobody_is_his_own_partner():
  for seed in range(20):
    for num in (2, 3, 8):
      partner = np.asarray(derangement(jax.random.key(seed), num))
      assert sorted(partner) == list(range(num)) and (partner != np.arange(num)).all()
  assert derangement(jax.random.key(0), 1).tolist() == [0]
  drawn = {tuple(np.asarray(derangement(jax.random.key(seed), 3))) for seed in range(20)}
  assert drawn == {(1, 2, 0), (2, 0, 1)}


@pytest.mark.parametrize(
  "call, message",
  [
    (lambda q, s: selected_queries(s, 0.0), r"ratio=0.0 is a share"),
    (lambda q, s: selected_queries(s, 0.5, always_keep=(9,)), "must leave some of 9 tokens"),
    (lambda q, s: selected_queries(s[0], 0.5), r"must be \[batch, tokens\]"),
    (lambda q, s: global_local_attention(q, q, q, s[:2], 0.5), r"scores \(2, 9\) must be"),
    (lambda q, s: pairwise_attention(q, q, q, jnp.arange(3)), r"partner \(3,\) must be"),
  ],
)
def test_what_cannot_be_is_named(call, message):
  with pytest.raises(ValueError, match=message):
    call(operands()[0], jnp.zeros((4, 9)))
