"""EEG of 117 seconds, 14 channels at about 128 Hz, with eyes open or closed; split by time.

A few samples are gross artefacts (the amplifier clips or drops): they are replaced by the channel's
last sane sample. Neighbouring samples are nearly equal, so parts are blocks of time, never drawn.

Source: O. Roesler, UCI Machine Learning Repository, 2013.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from h2g.data import files as shared
from h2g.data.checksums import SHA256
from h2g.errors import InputError

FILE = "eeg_eye_state.arff"
CHANNELS = (
  *("AF3", "F7", "F3", "FC5", "T7", "P7", "O1"),
  *("O2", "P8", "T8", "FC6", "F4", "F8", "AF4"),
)
SHARES = (0.6, 0.2, 0.2)
FAR = 12.0  # median absolute deviations from the median, beyond which a sample is an artefact


class Part(NamedTuple):
  """signals: [L, 14] float32, standardised by the training part; labels: [L] int32, 1 closed."""

  signals: np.ndarray
  labels: np.ndarray


def load(files: str | Path | None = None, *, digests=SHA256["eeg-eye-state"]) -> dict[str, Part]:
  """{"train", "val", "test"}: blocks of time in this order, of 60, 20 and 20 per cent.

  Args:
    files, digests: folder of eeg_eye_state.arff and {file: sha256}.
  Raises:
    InputError: the file is missing or changed, has other columns, or a channel without a sane
      sample; the message names file, row or channel.
  """
  source = shared.Source("eeg-eye-state", digests, files)
  path = source.folder / FILE
  rows = parse(source.text(FILE), path)
  signals, labels = rows[:, :-1], rows[:, -1].astype(np.int32)
  signals = repaired(signals, path)
  ends = np.round(np.cumsum(SHARES) * len(rows)).astype(np.int64)[:-1]
  first = signals[: ends[0]]
  signals = ((signals - first.mean(0)) / (first.std(0) + 1e-8)).astype(np.float32)
  cut = zip(np.split(signals, ends), np.split(labels, ends))
  return {name: Part(*part) for name, part in zip(("train", "val", "test"), cut)}


def parse(text: str, path) -> np.ndarray:
  """[L, 15] float64 of an ARFF file with the 14 channels and the label; `?` becomes NaN."""
  lines = [line.strip() for line in text.splitlines()]
  names = [line.split()[1] for line in lines if line.upper().startswith("@ATTRIBUTE")]
  if tuple(names[:-1]) != CHANNELS or len(names) != len(CHANNELS) + 1:
    raise InputError(f"{path} has the columns {', '.join(names) or 'none'}: it is not that file")
  table = [line.split(",") for line in lines if line and line[0] not in "@%"]
  for at, row in enumerate(table):
    if len(row) != len(names):
      raise InputError(f"{path}: data row {at + 1} has {len(row)} values, not {len(names)}")
  columns = [
    shared.numbers(column, path=path, column=name, missing=("?", "NaN", "nan"))
    for name, column in zip(names, zip(*table))
  ]
  if not columns or not np.isin(columns[-1], (0, 1)).all():
    raise InputError(f"{path}: {names[-1]} must be 0 or 1 in every row")
  return np.stack(columns, axis=1)


def repaired(signals: np.ndarray, path) -> np.ndarray:
  """[L, C] with every artefact replaced by the last sane sample before it (the first, after it)."""
  signals = signals.copy()
  for c, x in enumerate(signals.T):
    finite = np.isfinite(x)
    if not finite.any():
      raise InputError(f"{path}: channel {CHANNELS[c]} has no finite sample: leave it out")
    middle = np.median(x[finite])
    spread = np.median(np.abs(x[finite] - middle)) + 1e-8
    sane = finite & (np.abs(np.where(finite, x, 0.0) - middle) <= FAR * spread)
    last = np.maximum.accumulate(np.where(sane, np.arange(len(x)), -1))
    signals[:, c] = x[np.where(last < 0, np.argmax(sane), last)]
  return signals
