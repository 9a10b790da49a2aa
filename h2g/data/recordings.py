"""Recordings of subjects with different channels, and windows of segments cut from them."""

from typing import Any
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np


class Recordings(NamedTuple):
  """What is cut from; S subjects, L samples, C channels.

  signals: [S, L, C] float32, zero in channels that a subject lacks.
  counts: [S] int32, how many channels a subject has; they stand first.
  labels: [S, L] int32 of every sample, 0 or 1; None without.
  """

  signals: np.ndarray
  counts: np.ndarray
  labels: np.ndarray | None = None


class Windows(NamedTuple):
  """B windows of T segments with N samples.

  segments: [B, T, C, N] float32.
  mask: [B, C] bool, True where the subject has the channel.
  labels: [B] int32; None without.
  """

  segments: Any
  mask: Any
  labels: Any = None


def windows(found, key: Array, *, subjects: int, each: int, length: int, samples: int) -> Windows:
  """Random windows of random subjects, those of one subject side by side; runs inside a step.

  A window's label is the one that most samples of its last segment have.

  Args:
    found: Recordings. key: of the draw.
    subjects: how many are drawn, with replacement. each: windows of each.
    length: T segments a window. samples: N, of a segment.
  """
  signals, counts = jnp.asarray(found.signals), jnp.asarray(found.counts)
  who, when = jax.random.split(key)
  ids = jnp.repeat(jax.random.randint(who, (subjects,), 0, len(counts)), each)
  span = length * samples
  starts = jax.random.randint(when, ids.shape, 0, signals.shape[1] - span + 1)
  cut = lambda i, start: jax.lax.dynamic_slice(signals, (i, start, 0), (1, span, signals.shape[2]))
  x = jax.vmap(cut)(ids, starts).reshape(len(ids), length, samples, -1)
  mask = jnp.arange(signals.shape[2])[None] < counts[ids][:, None]
  labels = None
  if found.labels is not None:
    of_samples = jnp.asarray(found.labels)
    last = lambda i, at: jax.lax.dynamic_slice(of_samples, (i, at), (1, samples))
    labels = jax.vmap(last)(ids, starts + span - samples).sum((1, 2)) * 2 > samples
    labels = labels.astype(jnp.int32)
  return Windows(jnp.swapaxes(x, 2, 3), mask, labels)
