"""The decoder: shapes, the past alone, and what its options must not change."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from h2g.errors import InputError
from h2g.models.decoder import Decoder
from h2g.models.decoder import train_flops
from h2g.nn.pure import pure
from h2g.nn.rotary import RMSNorm
from h2g.nn.rotary import rotary

SHAPE = dict(vocab_size=19, dim=24, num_layers=2, num_heads=3)


def make(**shape):
  model = pure(lambda rngs: Decoder(**{**SHAPE, **shape}, rngs=rngs))
  params, rest = model.init(jax.random.key(0))
  return params, jax.jit(lambda params, tokens: model.bind(params, rest)(tokens))


TOKENS = np.random.default_rng(0).integers(19, size=(2, 9)).astype(np.int32)


@pytest.mark.parametrize("shape", [{}, {"key_heads": 1, "mlp": "gelu"}])
def test_logits_see_the_past_alone(shape):
  params, call = make(**shape)
  before = call(params, TOKENS)
  assert before.shape == (2, 9, 19) and before.dtype == jnp.float32
  changed = TOKENS.copy()
  changed[:, 5] = (changed[:, 5] + 1) % 19
  after = call(params, changed)
  np.testing.assert_array_equal(before[:, :5], after[:, :5])
  assert np.all(np.abs(before - after)[:, 5:].max(-1) > 1e-4)


@pytest.mark.smoke
def test_bfloat16_parameters_compute_in_bfloat16_and_give_float32_logits():
  params, call = make()
  half = call(jax.tree.map(lambda x: x.astype(jnp.bfloat16), params), TOKENS)
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, call(params, TOKENS), atol=0.02)


@pytest.mark.slow
def test_computing_again_changes_no_gradient():
  grads = {}
  for remat in ("none", "full", "dots"):
    params, call = make(remat=remat)
    grads[remat] = jax.grad(lambda p, call=call: jnp.sum(call(p, TOKENS) ** 2))(params)
  for remat in ("full", "dots"):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
      grads[remat],
      grads["none"],
    )


def test_rotations_keep_lengths_and_see_differences_of_positions():
  q, k = jax.random.normal(jax.random.key(1), (2, 1, 1, 2, 8))
  turn = lambda x, at: rotary(x, jnp.asarray([at]))
  product = lambda a, b: float(jnp.sum(turn(q, a) * turn(k, b)))
  assert product(3, 1) == pytest.approx(product(12, 10), rel=1e-4)
  assert abs(product(3, 1) - product(3, 2)) > 1e-3
  np.testing.assert_allclose(jnp.linalg.norm(turn(q, 7)), jnp.linalg.norm(q), rtol=1e-5)
  x = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
  wanted = x / np.sqrt((x**2).mean(-1, keepdims=True))
  np.testing.assert_allclose(RMSNorm(8, rngs=nnx.Rngs(0))(x), wanted, rtol=1e-5)


def test_the_published_shape_has_its_124_million_parameters():
  from configs.text import get_config

  shape = dict(get_config("gpt2").model)
  model = pure(lambda rngs: Decoder(**shape, rngs=rngs))
  params = jax.eval_shape(model.init, jax.random.key(0))[0]
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  # 124.44 M published, less positions (786,432), biases and shifts.
  assert count == 12 * (12 * 768**2 + 2 * 768) + 768 + 50257 * 768
  assert train_flops(10, 2, num_layers=1, dim=4, length=8) == 2 * (60 + 6 * 4 * 8)


@pytest.mark.parametrize(
  "shape, message",
  [
    ({"num_heads": 5}, "dim=24, num_heads=5"),
    ({"key_heads": 2}, "key_heads=2 do not fit"),
    ({"mlp": "relu"}, "mlp='relu' is unknown; choose from swiglu, gelu"),
    ({"remat": "all"}, "remat='all' is unknown"),
  ],
)
def test_what_does_not_fit_is_named(shape, message):
  with pytest.raises(InputError, match=message):
    make(**shape)
