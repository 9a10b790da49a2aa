"""Multi-variate parallel attention: the contract, and the equivalences that it promises."""

import functools

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from h2g.ops.attention import attention
from h2g.ops.mvpa import mvpa
from h2g.ops.mvpa import relative_channel_index
from h2g.ops.mvpa import relative_time_index
from h2g.ops.mvpa import xla

SLOW = pytest.param("attention", marks=pytest.mark.slow)


def arrays(batch=2, length=5, channels=3, heads=4, groups=2, width=4, seed=0):
  rng = np.random.default_rng(seed)
  q = (batch, length, channels, heads, width)
  kv = (batch, length, channels, groups, width)
  rows = [(n, groups, width) for n in (length, channels)]
  return [rng.standard_normal(s) for s in (q, kv, kv, *rows, *[(groups, width)] * 3)]


def floats(**sizes):
  return [jnp.asarray(x, jnp.float32) for x in arrays(**sizes)]


def case(**settings):
  run = jax.jit(
    lambda *a, implementation: mvpa(*a, implementation=implementation, **settings),
    static_argnames="implementation",
  )
  return lambda implementation, *a: run(*a, implementation=implementation)


def close(got, want, atol=1e-5):
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=atol)


def by_loops(q, k, v, k_time, k_chan, u, w, z, *, window, last_full=True, mask=None):
  """The definition, one query and one key at a time."""
  batch, length, channels, heads, width = q.shape
  per, out = heads // k.shape[3], np.zeros(q.shape)
  for b, t, c, h in np.ndindex(batch, length, channels, heads):
    g, scores, values = h // per, [], []
    for s, e in np.ndindex(t + 1, channels):
      if mask is not None and not mask[b, e]:
        continue
      near = t - s <= window or (last_full and t == length - 1)
      content = (q[b, t, c, h] + u[g]) @ k[b, s, e, g] if near else 0.0
      time = (q[b, t, c, h] + w[g]) @ k_time[length - 1 - (t - s), g]
      chan = (q[b, t, c, h] + z[g]) @ k_chan[channels - 1 - abs(c - e), g]
      scores.append((content + time + chan) / np.sqrt(width))
      values.append(v[b, s, e, g])
    weights = np.exp(np.array(scores) - max(scores))
    out[b, t, c, h] = weights @ np.array(values) / weights.sum()
  return out


@pytest.mark.few("xla")
@pytest.mark.parametrize("implementation", ["reference", "xla", "attention"])
def test_it_is_the_definition(implementation):
  mask = np.array([[True, True, True], [True, False, True]])
  want = by_loops(*arrays(), window=1, mask=mask)
  got = mvpa(*floats(), window=1, key_mask=jnp.asarray(mask), implementation=implementation)
  close(got, want)


@pytest.mark.slow
@pytest.mark.parametrize(
  "sizes, settings, dtype",
  [
    (dict(length=7, channels=17, batch=1), dict(window=2), jnp.float32),
    pytest.param(
      dict(length=5),
      dict(window=1, causal=False, last_full=False),
      jnp.float32,
      marks=pytest.mark.slow,
    ),
    pytest.param(dict(length=5), dict(window=1), jnp.bfloat16, marks=pytest.mark.slow),
  ],
  ids=["17 channels", "both ways", "bfloat16"],
)
def test_xla_agrees_with_float64(sizes, settings, dtype):
  contract.agrees(case(**settings), "xla", arrays(**sizes), dtype=dtype)


@pytest.mark.slow
def test_gradients_and_transforms():
  contract.matches_finite_differences(case(window=1), "xla", arrays(length=3))
  contract.transforms(case(window=1), "xla", arrays(length=3))


def test_two_devices():
  contract.shards(case(window=1), "xla", arrays(length=3), (0, 0, 0, None, None, None, None, None))


@pytest.mark.slow
def test_two_calls_of_attention_agree_with_float64():
  contract.agrees(case(window=1, causal=False), "attention", arrays(length=4))


@pytest.mark.slow
def test_what_is_computed_again_is_the_same(monkeypatch):
  monkeypatch.setattr(xla, "_SAVED_BYTES", 0)
  run = lambda: contract.value_and_grads(lambda *a: case(window=1)("xla", *a), *floats(length=4))
  kept = run()
  monkeypatch.setattr(xla, "_ROWS", 1)
  monkeypatch.setattr(xla, "_SAVED_BYTES", 0)
  jax.tree.map(close, run(), kept)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["xla", SLOW])
def test_a_window_as_long_as_the_recording_is_dense(implementation):
  x = floats(length=6)
  dense = mvpa(*x, window=6, implementation="reference")
  close(mvpa(*x, window=5, last_full=False, implementation=implementation), dense)
  assert np.abs(mvpa(*x, window=1, implementation=implementation) - dense).max() > 1e-2


@pytest.mark.slow
def test_one_channel_has_no_channel_term():
  q, k, v, k_time, k_chan, u, w, z = floats(channels=1)
  got = mvpa(q, k, v, k_time, k_chan, u, w, z, window=2)
  close(got, mvpa(q, k, v, k_time, jnp.zeros_like(k_chan), u, w, 5 * z, window=2))
  # And without lags it is causal attention over the content.
  nothing = jnp.zeros_like(k_time)
  got = mvpa(q, k, v, nothing, k_chan, u, w, z, window=9)
  wide = jnp.repeat(u, 2, axis=0)[None, None]
  causal = jnp.tril(jnp.ones((5, 5), bool))[None, None]
  close(got[:, :, 0], attention(q[:, :, 0] + wide, k[:, :, 0], v[:, :, 0], mask=causal))


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["reference", "xla", SLOW])
def test_padded_channels_equal_cropping(implementation):
  """Rows of the channel table are counted from its end, so cropping drops its first rows."""
  q, k, v, k_time, k_chan, *biases = floats(channels=5)
  mask = jnp.array([[True] * 3 + [False] * 2, [False] * 5])
  poison = lambda x: jnp.where(mask[:, None, :, None, None], x, jnp.nan)
  run = lambda v: mvpa(
    q, poison(k), poison(v), k_time, k_chan, *biases, window=1, key_mask=mask,
    implementation=implementation,
  )  # fmt: skip
  got, pull = jax.vjp(run, v)
  cropped = mvpa(*(x[:, :, :3] for x in (q, k, v)), k_time, k_chan[2:], *biases, window=1)
  close(got[0, :, :3], cropped[0])
  assert not np.asarray(got[1]).any()  # no key: zeros
  assert np.isfinite(np.asarray(pull(jnp.ones_like(got))[0])).all()


def test_the_indices_read_the_tables_from_their_ends():
  np.testing.assert_array_equal(np.diag(relative_time_index(4)), 3)
  assert relative_time_index(4)[3, 1] == 1  # a lag of two
  np.testing.assert_array_equal(relative_channel_index(3), [[2, 1, 0], [1, 2, 1], [0, 1, 2]])


def test_dropout_is_the_same_whoever_computes_it():
  x = floats()

  @functools.partial(jax.jit, static_argnums=0)
  def run(name, seed):
    dropped = dict(dropout_rate=0.5, dropout_key=jax.random.key(seed))
    return mvpa(*x, window=1, implementation=name, **dropped)

  close(run("xla", 0), run("reference", 0))
  assert np.abs(run("xla", 0) - run("xla", 1)).max() > 0.1
  mean = np.mean([run("xla", seed) for seed in range(200)], axis=0)
  assert np.abs(mean - mvpa(*x, window=1)).mean() < 0.05


@pytest.mark.slow
def test_the_content_of_what_is_far_is_never_scored():
  """No product of all queries with all keys, and no array of that size, beyond the values'."""
  x = floats(batch=1, length=16, channels=8)
  memory = {}
  for window in (1, 15):
    run = lambda *a, window=window: mvpa(*a, window=window, last_full=False)
    compiled = jax.jit(run).lower(*x).compile()
    memory[window] = compiled.cost_analysis()["flops"]
  assert memory[1] < 0.75 * memory[15]


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(k_time=(4, 2, 4)), r"k_time must be \[5, 2, 4\].* got \[4, 2, 4\]"),
    (dict(k_chan=(2, 2, 4)), r"k_chan must be \[3, 2, 4\]"),
    (dict(bias_chan=(4, 4)), r"bias_chan must be \[2, 4\]"),
    (dict(k=(2, 5, 3, 3, 4), v=(2, 5, 3, 3, 4)), "must divide that of heads: got 3, 4"),
    (dict(v=(2, 5, 3, 1, 4)), "must be like q"),
    (dict(window=-1), "window must be >= 0"),
    (dict(key_mask=(2, 5)), r"key_mask must be bool \[2, 3\]"),
    (dict(dropout_rate=0.1), "dropout_key is None"),
  ],
)
def test_what_cannot_be_served_is_named(change, message):
  names = ("q", "k", "v", "k_time", "k_chan", "bias_content", "bias_time", "bias_chan")
  given = dict(zip(names, floats())) | {
    k: jnp.zeros(v) if isinstance(v, tuple) else v for k, v in change.items()
  }
  with pytest.raises(ValueError, match=message):
    mvpa(**given)
