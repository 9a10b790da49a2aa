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
from h2g.train import resident

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
  size = dict(length=config.data.length, samples=config.model.samples, each=each)
  groups = max(config.data.test_windows // each, 1)
  step = lambda batch, key: draw(batch.shared, key, subjects=config.data.subjects, **size)
  fixed = jax.jit(lambda part, key: draw(part, key, subjects=groups, **size))
  held = {name: fixed(parts[name], jax.random.key(at)) for at, name in enumerate(("val", "test"))}
  return Source(step, resident(parts["train"]), resident(jax.device_get(held)))


def _synthetic(config) -> Source:
  def draw(found, key, **size):
    key, other = jax.random.split(key)
    windows = subjects.windows(found, key, **size)
    if config.task == "predict":
      return windows, jnp.zeros(len(windows.mask), jnp.int32)
    return subjects.discharges(windows, other)

  length = SEGMENTS * config.model.samples
  parts = subjects.splits(seed=config.data.seed, length=length, noise=config.data.noise)
  return _resident(config, parts, draw)


def _eeg(config) -> Source:
  num = len(eeg_eye_state.CHANNELS)

  def draw(found, key, **size):
    segments, mask = subjects.windows(found, key, **size)
    closed = segments[:, -1, num].mean(-1) > 0.5
    return subjects.Windows(segments[:, :, :num], mask[:, :num]), closed.astype(jnp.int32)

  def recording(part: eeg_eye_state.Part) -> subjects.Recordings:
    # The label rides along as one more channel, so that it is cut at the same places.
    signals = np.column_stack([part.signals, part.labels]).astype(np.float32)
    return subjects.Recordings(signals[None], np.array([num], np.int32))

  parts = eeg_eye_state.load(config.data.path or None)
  return _resident(config, {name: recording(part) for name, part in parts.items()}, draw)


def _swec(config) -> Source:
  """A stream from files, one subject a batch."""
  data, size = config.data, dict(length=config.data.length, samples=config.model.samples)
  found = {
    part: [swec_ieeg.Subject(data.path, name) for name in data[f"{part}_ids"]]
    for part in ("train", "val", "test")
  }
  pair = lambda drawn: (subjects.Windows(*drawn[:2]), drawn.labels)
  train = lambda seeds: swec_ieeg.stream(
    found["train"], data.each, config.train.steps, seeds, **size
  ).map(lambda drawn: Batch(shared=None, own=pair(drawn)))
  draw = lambda part, at: pair(swec_ieeg.drawn(found[part], data.test_windows, (0, at), **size))
  held = {part: draw(part, at) for at, part in enumerate(("val", "test"))}
  return Source(lambda batch, key: batch.own, train, resident(held))
