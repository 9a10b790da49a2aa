"""Synthetic subjects: travelling oscillations over a line of channels, and discharges that spread.

A subject has its own number of channels and two oscillators, each with a frequency, a direction
and a speed, so that channel c carries sin(2 pi f (s - tau c) + phi), in noise. A discharge starts
at one channel and moves to its neighbours, one a segment; in its control the same channels are
seized at the same times in a shuffled order: what tells them apart is channel distance and lag.
"""

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from h2g.data.recordings import Recordings
from h2g.data.recordings import Windows

SEEN = (4, 5, 6, 8, 9, 10, 12)  # channels of subjects that are trained on
UNSEEN = (7, 11)  # of those that are tested on


def recordings(
  counts: np.ndarray, *, seed: int, length: int, channels: int, noise: float = 0.5
) -> Recordings:
  """One recording per subject; the same arguments give the same signals.

  Args:
    counts: [S] channels of each subject.
    seed: of frequencies (0.01 to 0.06 cycles a sample), delays (1 to 8 samples a channel, either
      way), phases and noise.
    length: L, in samples.
    channels: C, at least the largest count.
    noise: standard deviation of AR(1) noise with coefficient 0.7, beside oscillations of 1 and 0.7.
  """
  rng = np.random.default_rng(seed)
  num = len(counts)
  draw = lambda low, high: rng.uniform(low, high, (num, 2))[:, :, None, None]
  frequency, phase = draw(0.01, 0.06), draw(0, 2 * np.pi)
  delay = draw(1, 8) * rng.choice([-1.0, 1.0], (num, 2))[:, :, None, None]
  time, channel = np.arange(length)[None, None, :, None], np.arange(channels)[None, None, None]
  waves = np.sin(2 * np.pi * frequency * (time - delay * channel) + phase)
  signals = waves[:, 0] + 0.7 * waves[:, 1]
  steps = rng.normal(0, noise * np.sqrt(1 - 0.7**2), signals.shape)
  drift = np.zeros((num, channels))
  for at in range(length):
    drift = 0.7 * drift + steps[:, at]
    signals[:, at] += drift
  here = np.arange(channels) < np.asarray(counts)[:, None]
  return Recordings((signals * here[:, None]).astype(np.float32), np.asarray(counts, np.int32))


def splits(*, seed: int, length: int, noise: float) -> dict[str, Recordings]:
  """{"train", "val", "test"}: 32 and 6 subjects with SEEN counts of channels, 10 with UNSEEN."""

  def part(at: int, num: int, counts: tuple[int, ...]) -> Recordings:
    counts = np.random.default_rng((seed, at)).choice(counts, num)
    size = dict(length=length, channels=max(SEEN), noise=noise)
    return recordings(counts, seed=10 * seed + at, **size)

  return {"train": part(0, 32, SEEN), "val": part(1, 6, SEEN), "test": part(2, 10, UNSEEN)}


def discharges(found: Windows, key: Array, *, amplitude: float = 3.0) -> Windows:
  """The windows with a discharge in each, of either class, and their labels.

  Of class 1, channel c is seized from segment t0 + |c - c0| on; of class 0 the same times stand at
  the subject's channels in random order. t0 is segment 1, 2 or 3. Once seized, a channel carries
  amplitude * (0.75 + sin), 0.12 to 0.2 cycles a sample with a phase of its own: a rhythm on a shift
  of the baseline.
  """
  batch, length, channels, samples = found.segments.shape
  keys = jax.random.split(key, 6)
  uniform = lambda at, low, high: jax.random.uniform(keys[at], (batch,), minval=low, maxval=high)
  labels = jax.random.bernoulli(keys[0], 0.5, (batch,)).astype(jnp.int32)
  counts = found.mask.sum(1, dtype=jnp.int32)
  source = (uniform(1, 0.0, 1.0) * counts.astype(jnp.float32)).astype(jnp.int32)
  channel = jnp.arange(channels, dtype=jnp.int32)[None]
  onset = jnp.abs(channel - source[:, None])
  # A random order of the channels that are there: the others sort behind them.
  order = jax.random.uniform(keys[2], (batch, channels)) + (~found.mask).astype(jnp.float32)
  shuffled = jnp.take_along_axis(onset, jnp.argsort(order, axis=1), axis=1)
  onset = jnp.where((labels == 1)[:, None], onset, shuffled)
  onset = onset + jax.random.randint(keys[3], (batch, 1), 1, 4)
  active = jnp.arange(length, dtype=jnp.int32)[None, :, None] >= onset[:, None]
  active = (active & found.mask[:, None]).astype(jnp.float32)
  time = jnp.arange(length * samples, dtype=jnp.float32).reshape(length, samples)
  turns = uniform(4, 0.12, 0.2)[:, None, None, None] * time[None, :, None]
  phase = jax.random.uniform(keys[5], (batch, 1, channels, 1))
  rhythm = 0.75 + jnp.sin(2 * jnp.pi * (turns + phase))
  return Windows(found.segments + amplitude * active[..., None] * rhythm, found.mask, labels)
