"""Samples between pixels and convolutions over them: the contract and plain convolution."""

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from h2g.ops.deform import bilinear
from h2g.ops.deform import deform_conv


def arrays(batch=2, height=5, width=6, channels=3, points=11):
  rng = np.random.default_rng(0)
  # Points reach past the edges and keep a distance from the pixels, where there is a kink.
  at = rng.integers(-2, 8, (batch, points, 2)) + rng.uniform(0.1, 0.9, (batch, points, 2))
  return [rng.standard_normal((batch, height, width, channels)), at]


def case(implementation, x, points):
  return bilinear(x, points, implementation=implementation)


@pytest.mark.slow
def test_the_contract_of_samples():
  contract.agrees(case, "xla", arrays())
  contract.matches_finite_differences(case, "xla", arrays())


def test_at_pixels_it_is_the_pixel_and_outside_nothing():
  x = jnp.arange(12.0).reshape(1, 3, 4, 1)
  points = jnp.array([[[1.0, 2.0], [0.5, 0.0], [-1.0, 0.0], [3.0, 9.0], [2.0, 3.5]]])
  np.testing.assert_allclose(bilinear(x, points)[0, :, 0], [6, 2, 0, 0, 5.5])


@pytest.mark.smoke
@pytest.mark.parametrize("stride, padding", [(1, 1), (2, 0)])
def test_without_offsets_it_is_a_convolution(stride, padding):
  rng = np.random.default_rng(0)
  x, kernel = (
    jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((2, 6, 7, 3), (3, 3, 3, 4))
  )
  plain = lambda x, kernel: jax.lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    [(padding, padding)] * 2,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  want = plain(x, kernel)
  offsets = jnp.zeros((*want.shape[:3], 9, 2))
  ours = lambda x, kernel: deform_conv(
    x, kernel, offsets, jnp.ones(offsets.shape[:-1]), stride=stride, padding=padding
  )
  both = lambda f: jax.jit(lambda *a: (f(*a), jax.grad(lambda *b: (f(*b) ** 3).sum(), (0, 1))(*a)))
  for got, wanted in zip(*[jax.tree.leaves(both(f)(x, kernel)) for f in (ours, plain)]):
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-3)


def test_offsets_move_and_weights_scale_the_taps():
  rng = np.random.default_rng(0)
  x, kernel = (
    jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((1, 8, 8, 2), (3, 3, 2, 2))
  )
  none = jnp.zeros((1, 8, 8, 9, 2))
  plain = deform_conv(x, kernel, none, padding=1)
  moved = deform_conv(x, kernel, none + jnp.array([1.0, 0.0]).reshape(1, 1, 1, 1, 2), padding=1)
  np.testing.assert_allclose(moved[:, :-1], plain[:, 1:], atol=1e-5)
  weights = jnp.zeros((1, 8, 8, 9)).at[..., 4].set(0.5)  # the middle tap alone
  alone = deform_conv(x, kernel, none, weights, padding=1)
  np.testing.assert_allclose(alone, 0.5 * x @ kernel[1, 1], atol=1e-5)
  with pytest.raises(ValueError, match="offsets"):
    deform_conv(x, kernel, none, padding=0)
