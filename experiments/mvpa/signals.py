"""Where windows come from: synthetic subjects, the EEG recording, SWEC-iEEG."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from h2g.data import eeg_eye_state
from h2g.data import subjects
from h2g.data import swec_ieeg
from h2g.train import Batch

SEEN = (4, 5, 6, 8, 9, 10, 12)  # channels of subjects that are trained on
UNSEEN = (7, 11)
SEGMENTS = 96  # of a synthetic recording


class Source(NamedTuple):
  """draw: (batch of one seed, key) -> (Windows, labels); train, evaluation: as in Experiment."""

  draw: Callable[..., Any]
  train: Callable[..., Any]
  evaluation: Callable[..., Any]


def sources(config) -> Source:
  """The source that config.data names."""
  return {"subjects": _synthetic, "eeg": _eeg, "swec": _swec}[config.data.kind](config)


def _resident(config, parts: dict[str, Any], draw) -> Source:
  """Recordings that stay on the device: windows are drawn inside the step."""
  each = config.data.each
  size = dict(length=config.data.length, samples=config.model.samples)
  groups = max(config.data.test_windows // each, 1)

  def drawn(batch, key):
    return draw(batch.shared, key, subjects=config.data.subjects, each=each, **size)

  def resident(shared):
    return lambda seeds: Batch(shared=shared, own=np.zeros((len(seeds), 1), np.float32))

  fixed = jax.jit(lambda part, key: draw(part, key, subjects=groups, each=each, **size))
  held = {name: fixed(parts[name], jax.random.key(at)) for at, name in enumerate(("val", "test"))}
  return Source(drawn, resident(parts["train"]), resident(jax.device_get(held)))


def _synthetic(config) -> Source:
  def draw(found, key, **size):
    key, other = jax.random.split(key)
    windows = subjects.windows(found, key, **size)
    if config.task == "predict":
      return windows, jnp.zeros(len(windows.mask), jnp.int32)
    return subjects.discharges(windows, other)

  def part(seed: int, num: int, counts) -> subjects.Recordings:
    rng = np.random.default_rng((config.data.seed, seed))
    return subjects.recordings(
      rng.choice(counts, num),
      seed=10 * config.data.seed + seed,
      length=SEGMENTS * config.model.samples,
      channels=max(SEEN),
      noise=config.data.noise,
    )

  parts = {"train": part(0, 32, SEEN), "val": part(1, 6, SEEN), "test": part(2, 10, UNSEEN)}
  return _resident(config, parts, draw)


def _eeg(config) -> Source:
  parts = eeg_eye_state.load(config.data.path or None)
  state = lambda part: subjects.Recordings(part.signals[None], np.array([14], np.int32))

  def draw(found, key, **size):
    found, labels = found
    windows = subjects.windows(found, key, **size)
    # The label rides along as if it were a channel, so that it is cut at the same places.
    open_ = subjects.windows(labels, key, **size).segments[:, -1, 0].mean(-1)
    return windows, (open_ > 0.5).astype(jnp.int32)

  ride = lambda part: subjects.Recordings(
    np.repeat(part.labels[None, :, None], 14, 2).astype(np.float32), np.array([14], np.int32)
  )
  return _resident(config, {k: (state(v), ride(v)) for k, v in parts.items()}, draw)


def _swec(config) -> Source:
  """A stream from files, one subject a batch; channels are padded to a multiple of 32."""
  size = dict(length=config.data.length, samples=config.model.samples)
  split = lambda ids: [swec_ieeg.Subject(config.data.path, name) for name in ids]
  of = {k: split(config.data[f"{k}_ids"]) for k in ("train", "val", "test")}

  def read(name: str, num: int, key: tuple):
    rng = np.random.default_rng(key)
    subject = of[name][rng.integers(len(of[name]))]
    segments, labels = subject.windows(rng, num, **size)
    padding = -segments.shape[2] % 32
    mask = np.arange(segments.shape[2] + padding) < segments.shape[2]
    segments = np.pad(segments, ((0, 0), (0, 0), (0, padding), (0, 0)))
    return subjects.Windows(segments, np.broadcast_to(mask, (num, len(mask)))), labels

  def train(seeds):
    import grain

    def batch(at: int) -> Batch:
      drawn = [read("train", config.data.each, (seed, at)) for seed in seeds]
      return Batch(shared=None, own=jax.tree.map(lambda *x: np.stack(x), *drawn))

    return grain.MapDataset.range(config.train.steps).map(batch)

  def evaluation(seeds):
    held = {k: read(k, config.data.test_windows, (0, at)) for at, k in enumerate(("val", "test"))}
    return Batch(shared=held, own=np.zeros((len(seeds), 1), np.float32))

  return Source(lambda batch, key: batch.own, train, evaluation)
