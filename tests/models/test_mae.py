"""The masked autoencoder: what it sees, what it is scored on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from h2g.data import canvases
from h2g.errors import InputError
from h2g.models.mae import MaskedAutoencoder
from h2g.nn.patches import patchify
from h2g.nn.patches import unit_range
from h2g.nn.pure import pure

SMALL = dict(
  image_size=12,
  patch=3,
  channels=1,
  dim=8,
  num_layers=1,
  num_heads=2,
  decoder_dim=8,
  decoder_layers=1,
  decoder_heads=2,
)


@pytest.mark.slow
def test_masked_pixels_are_scored_and_never_seen():
  model = pure(lambda rngs: MaskedAutoencoder(**SMALL, rngs=rngs))
  params, rest = model.init(jax.random.key(0))
  rng = np.random.default_rng(0)
  images = jnp.asarray(rng.random((3, 12, 12, 1)), jnp.float32)
  mae = model.bind(params, rest)
  key = jax.random.key(1)
  ids = np.asarray(mae.visible_ids(3, key))
  assert ids.shape == (3, 4) and all(len(set(row)) == 4 for row in ids)
  call = jax.jit(lambda images: model.bind(params, rest)(images, jnp.asarray(ids)))
  drawn = call(images)
  assert drawn.shape == (3, 16, 9)
  # Other pixels in the masked patches change nothing.
  patches = np.array(patchify(images, 3))
  masked = np.ones((3, 16), bool)
  masked[np.arange(3)[:, None], ids] = False
  patches[masked] = 7.0
  whole = patches.reshape(3, 4, 4, 3, 3, 1).swapaxes(2, 3).reshape(3, 12, 12, 1)
  np.testing.assert_array_equal(call(jnp.asarray(whole)), drawn)
  # The loss by hand.
  target = np.asarray(patchify(images, 3))
  scaled = (target - target.mean(-1, keepdims=True)) / (target.std(-1, keepdims=True) + 1e-6)
  error = ((np.asarray(drawn) - scaled) ** 2).mean(-1)
  by_hand = [error[i][masked[i]].mean() for i in range(3)]
  np.testing.assert_allclose(mae.loss(images, key), by_hand, rtol=1e-4)


@pytest.mark.slow
def test_a_few_images_that_are_mostly_blank_are_learnt_by_heart():
  """Not so where outputs start at unit variance: they are silenced, with all that feeds them."""
  made = canvases.splits(train=16, val=1, test=1, noise=0.0)["train"]
  images, key = unit_range(jnp.asarray(made.images)), jax.random.key(7)
  sizes = dict(dim=96, num_layers=4, num_heads=4, decoder_dim=48, decoder_layers=2, decoder_heads=4)
  model = pure(
    lambda rngs: MaskedAutoencoder(image_size=24, patch=3, channels=1, **sizes, rngs=rngs)
  )
  params, rest = jax.jit(model.init)(jax.random.key(0))
  optimizer = optax.adam(optax.linear_schedule(0.0, 1e-3, 40))
  loss = lambda params: model.bind(params, rest).loss(images, key).mean()

  def step(carry, _):
    params, state = carry
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(grads, state)
    return (optax.apply_updates(params, updates), state), value

  run = jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), length=300)[1])
  with jax.numpy_dtype_promotion("standard"):  # of optax's count of steps
    values = np.asarray(run(params))
  target = np.asarray(patchify(images, 3))
  blank = (target.std(-1) < 1e-6).mean()
  assert blank > 0.7 and values[-1] < 0.3 * (1 - blank), values[::50]  # 1 - blank: of predicting 0


def test_a_ratio_that_masks_nothing_or_all():
  for ratio, left in ((0.0, 16), (1.0, 0)):
    with pytest.raises(InputError, match=f"leaves {left} of 16 patches visible"):
      pure(lambda rngs, ratio=ratio: MaskedAutoencoder(**SMALL, mask_ratio=ratio, rngs=rngs))
