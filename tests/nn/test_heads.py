"""Heads, the weighing of losses, and losses of metric learning by hand."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from h2g.data.triplets import sample_identities
from h2g.nn.heads import ClassTokenHead
from h2g.nn.heads import UncertaintyWeighting
from h2g.nn.losses import hardest
from h2g.nn.losses import triplet_loss


def test_losses_are_weighed_by_learned_uncertainty():
  weigh, losses = UncertaintyWeighting(2), jnp.array([3.0, 1.0])
  assert weigh(losses) == pytest.approx(2.0)  # at first half the sum
  weigh.w[...] = jnp.log(losses)  # where the derivative vanishes: exp(-w) L = 1
  assert weigh(losses) == pytest.approx(0.5 * (2 + np.log(3)))
  slope = nnx.grad(lambda module: module(losses))(weigh)
  np.testing.assert_allclose(slope.w[...], 0.0, atol=1e-6)


def test_a_neck_normalises_over_the_batch_in_training_alone():
  x = jnp.asarray(np.random.default_rng(0).normal(2, 3, (32, 6)), jnp.float32)
  head = ClassTokenHead(6, 4, bnneck=True, rngs=nnx.Rngs(0))
  assert head.neck.bias is None and head.out.bias is None
  found = head(x, train=True)
  np.testing.assert_array_equal(found.feature, x)  # what the triplets see
  scaled = (x - x.mean(0, keepdims=True)) / jnp.sqrt(x.var(0, keepdims=True) + 1e-5)
  np.testing.assert_allclose(found.logits, head.out(scaled), atol=1e-4)
  evaluated = head(x, train=False)
  mean, var = head.neck.mean[...][None], head.neck.var[...][None]
  np.testing.assert_allclose(evaluated.feature, (x - mean) / jnp.sqrt(var + 1e-5), atol=1e-4)


def test_triplets_by_hand():
  near, far = jnp.array([0.0, 0.4]), jnp.array([0.4, 0.0])
  np.testing.assert_allclose(triplet_loss(near, far, 0.2), [0.0, 0.6], atol=1e-6)
  np.testing.assert_allclose(triplet_loss(near, far), np.log1p(np.exp([-0.4, 0.4])), atol=1e-6)
  points, labels = jnp.array([[0.0], [1.0], [3.0], [7.0]]), jnp.array([0, 0, 1, 1])
  near, far = hardest(points, labels)
  np.testing.assert_allclose(near, [1, 1, 4, 4])
  np.testing.assert_allclose(far, [3, 2, 2, 6])
  slope = jax.grad(lambda x: triplet_loss(*hardest(x, labels)).sum())(points * 0)
  assert np.isfinite(slope).all()


def test_a_batch_has_some_items_of_some_identities():
  rows = jnp.arange(30).reshape(6, 5)
  ids = np.asarray(sample_identities(rows, 3, 2, jax.random.key(0))).reshape(3, 2)
  assert (ids[:, 0] // 5 == ids[:, 1] // 5).all() and len(set(ids[:, 0] // 5)) == 3
  assert len(set(ids.ravel())) == 6
