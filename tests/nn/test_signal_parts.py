"""Wavelets, contrastive prediction and low-rank adaptation, against what defines them."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from h2g.errors import InputError
from h2g.nn import wavelets
from h2g.nn.contrastive import info_nce
from h2g.nn.lora import join
from h2g.nn.lora import LoRADense
from h2g.nn.lora import partition

# pywt.wavedec(cos(0.3 n^1.5), "db4", mode, level=1) for n = 0 .. 13, PyWavelets.
SIGNAL = np.cos(0.3 * np.arange(14) ** 1.5)
PERIODIZATION = np.array([
  0.5694324, 1.2624757, 0.9097475, -1.2428753, 0.0106898, 0.7040645, -0.7882746, -0.1082140,
  -0.0456561, 0.3788179, -0.5790774, 0.5778264, -1.0339084, 0.1176449,
])  # fmt: skip
PERIODIC = np.array([
  -0.7618232, 0.2237590, 0.7502377, 1.4200622, -0.1667470, -1.2814604, 1.2412318, -0.7618232,
  0.2237590, 0.7502377, 0.3777765, -0.1038083, -0.1314742, 0.2323118, 0.0057675, -0.4021556,
  0.7141490, 0.3777765, -0.1038083, -0.1314742,
])  # fmt: skip


def test_the_transform_is_orthogonal_and_kills_polynomials():
  matrix = np.asarray(wavelets.wavedec_db4(jnp.eye(64)))
  np.testing.assert_allclose(matrix @ matrix.T, np.eye(64), atol=1e-5)
  assert wavelets.max_level(64) == 3 and wavelets.max_level(2560) == 8
  assert wavelets.num_coefficients(2560) == 2560
  assert wavelets.num_coefficients(2560, boundary="periodic") == 2610  # the official projection's
  flat = wavelets.wavedec_db4(jnp.ones((2, 64)))
  np.testing.assert_allclose(flat[:, :8], 8**0.5, atol=1e-5)
  np.testing.assert_allclose(flat[:, 8:], 0, atol=1e-5)
  # Four vanishing moments: details of a cubic are zero where the filter does not wrap around.
  cubic = wavelets.wavedec_db4(jnp.asarray(np.linspace(-1, 1, 64) ** 3, jnp.float32), 1)[32:]
  np.testing.assert_allclose(cubic[3:-3], 0, atol=1e-5)
  assert np.abs(cubic).max() > 0.1


def test_both_boundaries_are_those_of_pywavelets():
  x = jnp.asarray(SIGNAL, jnp.float32)
  np.testing.assert_allclose(wavelets.wavedec_db4(x, 1), PERIODIZATION, atol=1e-5)
  found = wavelets.wavedec_db4(x, 1, boundary="periodic")
  np.testing.assert_allclose(found, PERIODIC, atol=1e-5)
  odd = wavelets.wavedec_db4(x[:13], 0)
  np.testing.assert_allclose(odd, x[:13])


def test_what_the_transform_cannot_do_is_named():
  with pytest.raises(InputError, match="64 samples has at most 3"):
    wavelets.wavedec_db4(jnp.ones(64), 4)
  with pytest.raises(InputError, match="boundary='zero' is unknown"):
    wavelets.wavedec_db4(jnp.ones(64), boundary="zero")


def test_info_nce_by_hand():
  """Three rows of which two may be drawn: every negative is known."""
  rng = np.random.default_rng(0)
  pred, target = (jnp.asarray(x, jnp.float32) for x in rng.normal(size=(2, 3, 4)))
  valid = jnp.array([True, False, True])
  run = jax.jit(lambda p, t: info_nce(p, t, jax.random.key(0), 5, 0.1, valid=valid))
  found = run(pred, target)
  cos = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)
  own, other = cos(pred[0], target[0]), cos(pred[0], target[2])
  want = -np.log(np.exp(own / 0.1) / (np.exp(own / 0.1) + 5 * np.exp(other / 0.1)))
  assert found.loss[0] == pytest.approx(want, rel=1e-4)
  assert bool(found.top1[0]) == bool(own > other)
  # Gradients reach predictions and own targets; negatives carry none.
  d_pred, d_target = jax.grad(lambda p, t: run(p, t).loss[0], (0, 1))(pred, target)
  assert np.abs(d_pred[0]).max() > 0 and np.abs(d_target[0]).max() > 0
  assert not np.asarray(d_target[1:]).any() and not np.asarray(d_pred[1:]).any()


def test_negatives_are_uniform_over_all_others():
  """Also the last row: the official draw leaves the last batch element out."""
  target = jnp.eye(6)
  pred = jnp.tile(jnp.asarray([2.0**i for i in range(6)]), (6, 1))
  scores = np.asarray(pred[0] / jnp.linalg.norm(pred[0]))
  run = jax.jit(lambda key: info_nce(pred, target, key, 1, 1.0).loss)
  loss = np.stack([run(jax.random.key(i)) for i in range(400)])
  for n in range(6):
    drawn = scores[n] + np.log(np.expm1(loss[:, n]))  # the one negative's similarity
    ids = np.abs(drawn[:, None] - scores).argmin(1)
    shares = np.bincount(ids, minlength=6) / 400
    assert shares[n] == 0 and np.abs(np.delete(shares, n) - 0.2).max() < 0.08


@pytest.mark.slow
def test_equal_or_no_negatives_are_left_out():
  rows = jnp.ones((3, 4))
  np.testing.assert_allclose(info_nce(rows, rows, jax.random.key(0)).loss, 0, atol=1e-6)
  one = info_nce(rows[:1], rows[:1], jax.random.key(0))
  assert one.loss[0] == 0 and bool(one.top1[0])


def test_lora_starts_as_the_plain_matrix_and_is_trained_by_name():
  layer = LoRADense(5, 3, rank=2, rngs=nnx.Rngs(0))
  x = jnp.ones((4, 5))
  np.testing.assert_allclose(layer(x), x @ layer.kernel[...])
  layer.lora_b[...] = jnp.ones((2, 3))
  want = x @ (layer.kernel[...] + 8.0 * layer.lora_a[...] @ layer.lora_b[...])
  np.testing.assert_allclose(layer(x), want, rtol=1e-5)
  params = {"a": {"kernel": 1, "lora_a": 2}, "classify": {"kernel": 3}}
  first, second = partition(params, lambda path: "lora" in path or path.startswith("classify"))
  assert first == {"a": {"lora_a": 2}, "classify": {"kernel": 3}} and second == {"a": {"kernel": 1}}
  assert join(first, second) == params
