"""Where windows come from: synthetic subjects, the EEG recording, SWEC-iEEG."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from h2g.data import eeg_eye_state
from h2g.data import subjects
from h2g.data import swec_ieeg
from h2g.data.recordings import Recordings
from h2g.data.recordings import windows
from h2g.train import Batch
from h2g.train import resident

SEGMENTS = 96  # of a synthetic recording


class Source(NamedTuple):
  """draw: (batch of one seed, key) -> Windows; train, evaluation: as in Experiment."""

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
    quiet = windows(found, key, **size)
    return quiet if config.task == "predict" else subjects.discharges(quiet, other)

  length = SEGMENTS * config.model.samples
  parts = subjects.splits(seed=config.data.seed, length=length, noise=config.data.noise)
  return _resident(config, parts, draw)


def _eeg(config) -> Source:
  counts = np.array([len(eeg_eye_state.CHANNELS)], np.int32)
  parts = eeg_eye_state.load(config.data.path or None)
  one = lambda part: Recordings(part.signals[None], counts, part.labels[None])
  return _resident(config, {name: one(part) for name, part in parts.items()}, windows)


def _swec(config) -> Source:
  """A stream from files, one subject a batch."""
  data, size = config.data, dict(length=config.data.length, samples=config.model.samples)
  found = {
    part: [swec_ieeg.Subject(data.path, name) for name in data[f"{part}_ids"]]
    for part in ("train", "val", "test")
  }
  train = lambda seeds: swec_ieeg.stream(
    found["train"], data.each, config.train.steps, seeds, **size
  ).map(lambda drawn: Batch(shared=None, own=drawn))
  draw = lambda part, at: swec_ieeg.drawn(found[part], data.test_windows, (0, at), **size)
  held = {part: draw(part, at) for at, part in enumerate(("val", "test"))}
  return Source(lambda batch, key: batch.own, train, resident(held))
