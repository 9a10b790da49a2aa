"""MVPFormer: what it may see, that padding equals cropping, and what does not fit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from h2g.errors import InputError
from h2g.models.mvpformer import MVPFormer
from h2g.models.mvpformer import MVPFormerClassifier
from h2g.models.mvpformer import trained
from h2g.nn.lora import join
from h2g.nn.lora import partition
from h2g.nn.pure import pure

SMALL = dict(samples=16, dim=16, num_layers=2, num_heads=4, kv_heads=2, mlp_dim=24)
SMALL |= dict(window=1, max_length=5, max_channels=6, init_scale=0.3, table_scale=0.3)


@functools.cache
def model(kind=MVPFormer, **settings):
  first = (2,) if kind is MVPFormerClassifier else ()
  built = pure(lambda rngs: kind(*first, **(SMALL | settings), rngs=rngs))
  params, rest = built.init(jax.random.key(0))
  run = jax.jit(lambda x, mask=None, key=None: built.bind(params, rest)(x, mask, key=key))
  return run, params


def segments(channels=4, length=4, batch=2):
  rng = np.random.default_rng(0)
  return jnp.asarray(rng.normal(size=(batch, length, channels, 16)), jnp.float32)


@pytest.mark.parametrize("kind", ["mvpa", "vanilla", "axial", "independent"])
def test_the_past_does_not_see_what_comes(kind):
  run, _ = model(attention=kind)
  x = segments()
  tokens, out = run(x)
  assert tokens.shape == out.shape == (2, 4, 4, 16)
  later = run(x.at[:, 3, 2].add(1.0))[1]
  np.testing.assert_allclose(later[:, :3], out[:, :3], atol=1e-5)
  changed = np.abs(later[:, 3] - out[:, 3]).max((0, 2)) > 1e-4
  assert changed[2] and changed[0] == (kind != "independent")


@pytest.mark.slow
@pytest.mark.parametrize("settings", [dict(anchor="zero"), dict(), dict(attention="vanilla")])
def test_padded_channels_equal_cropping(settings):
  run, _ = model(**settings)
  x = segments()
  mask = jnp.array([[True] * 3 + [False], [True] * 4])
  poisoned = jnp.where(mask[:, None, :, None], x, 7.0)
  out = run(poisoned, mask)[1]
  np.testing.assert_allclose(out[0, :, :3], run(x[:, :, :3])[1][0], atol=1e-5)
  np.testing.assert_allclose(out[1], run(x)[1][1], atol=1e-5)


def test_without_relative_terms_nothing_says_which_channel_it_is():
  x, order = segments(), jnp.array([2, 0, 3, 1])
  alike = lambda **settings: float(
    jnp.abs(model(**settings)[0](x[:, :, order])[1] - model(**settings)[0](x)[1][:, :, order]).max()
  )
  assert alike(channel_term=False) < 1e-5
  assert alike(attention="vanilla", channel_embedding=False) < 1e-5
  assert alike() > 1e-3 and alike(attention="vanilla") > 1e-3


@pytest.mark.slow
def test_the_classifier_pools_the_last_segment_and_trains_what_it_says():
  run, params = model(MVPFormerClassifier, lora_rank=2)
  x = segments()
  logits = run(x)
  assert logits.shape == (2, 2)
  chosen, frozen = partition(params, trained)
  names = [jax.tree_util.keystr(p, simple=True) for p, _ in jax.tree.leaves_with_path(chosen)]
  assert len(names) == 1 + 2 * 2 * 2 and all("lora" in n or "classify" in n for n in names)
  assert jax.tree.structure(join(chosen, frozen)) == jax.tree.structure(params)
  dropped = model(MVPFormerClassifier, dropout_rate=0.2)[0]
  assert np.abs(dropped(x, None, jax.random.key(1)) - dropped(x)).max() > 1e-4


@pytest.mark.parametrize(
  "settings, sizes, message",
  [
    ({}, dict(length=6), "6 segments are more than the table's 5 rows"),
    ({}, dict(channels=7), "7 channels are more than the table's 6 rows"),
    (dict(attention="flat"), {}, "attention='flat' is unknown: choose from mvpa"),
    (dict(anchor="end"), {}, "anchor='end' is unknown: choose from length, zero"),
    (dict(kv_heads=3), {}, "kv_heads=3 do not fit"),
  ],
)
def test_what_does_not_fit_is_named(settings, sizes, message):
  with pytest.raises(InputError, match=message):
    model(**settings)[0](segments(**sizes))
