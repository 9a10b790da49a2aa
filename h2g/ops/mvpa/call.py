"""What an implementation of multi-variate parallel attention receives, and where scores stand."""

import dataclasses
from typing import NamedTuple

from jax import Array
import numpy as np


@dataclasses.dataclass(frozen=True)
class Spec:
  """The static half of a call; the fields are the arguments of `mvpa`."""

  window: int
  causal: bool
  last_full: bool
  dropout_rate: float = 0.0

  def content(self, length: int) -> np.ndarray:
    """[T, T] bool: where the content term counts, for (query, key) segments."""
    lag = lags(length)
    near = np.abs(lag) <= self.window
    if self.last_full:
      near[-1:] = True
    return near & self.attends(length)

  def attends(self, length: int) -> np.ndarray:
    """[T, T] bool: which segments a query sees at all."""
    return lags(length) >= 0 if self.causal else np.ones((length, length), bool)


class Operands(NamedTuple):
  """The arrays of a call, as `mvpa` takes them; keys and values of masked channels are zero.

  seed: [2] uint32, present when weights are dropped.
  """

  q: Array
  k: Array
  v: Array
  k_time: Array
  k_chan: Array
  bias_content: Array
  bias_time: Array
  bias_chan: Array
  key_mask: Array | None = None
  seed: Array | None = None


def lags(length: int) -> np.ndarray:
  """[T, T] int: query segment minus key segment."""
  return np.arange(length)[:, None] - np.arange(length)[None, :]


def relative_time_index(length: int) -> np.ndarray:
  """[T, T] int: row of the time table for (query, key) segments, T - 1 - |lag|.

  Lag 0 reads the last row, as in the official code; so rows are counted from the table's end.
  """
  return length - 1 - np.abs(lags(length))


def relative_channel_index(channels: int) -> np.ndarray:
  """[C, C] int: row of the channel table for (query, key) channels, C - 1 - |c - c'|."""
  return relative_time_index(channels)
