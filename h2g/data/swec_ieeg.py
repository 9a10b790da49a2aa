"""SWEC-iEEG: long recordings inside the skull, 22 to 128 channels, with seizures.

  FOLDER/ID01/ID01_total.h5   HDF5: `data/ieeg` [channels, samples]; `data/seizures`, a table
                              with the columns `onsets` and `offsets` (seconds); the attribute
                              `sampling_rate` (Hz)

This is the layout that the official code of arXiv 2506.20354 reads, one file per subject. Reading
needs the package h5py, and hdf5plugin where the file is compressed with one of its filters.

Source: mb-neuro.medical-blocks.ch, public_access/databases/ieeg/swec_ieeg.
"""

from collections.abc import Sequence
import contextlib
from pathlib import Path

import numpy as np

from h2g.data.recordings import Windows
from h2g.errors import InputError

INSTALL = "pip install h5py hdf5plugin"
RATE = 512  # Hz
MULTIPLE = 32  # channels are padded to one, so that few programs are compiled


class Subject:
  """One subject's recording, read window by window.

  channels: how many it has. rate: Hz. seconds: its length. seizures: [K, 2] onset and end, seconds.
  """

  def __init__(self, folder: str | Path, name: str):
    """Opens FOLDER/NAME/NAME_total.h5; InputError names the file and what it lacks."""
    if not folder:
      raise InputError("config.data.path is empty: give the folder that holds ID01/ID01_total.h5")
    self.path = Path(folder).expanduser() / name / f"{name}_total.h5"
    h5py = _h5py()
    if not self.path.is_file():
      raise InputError(f"{self.path} does not exist: give the folder that holds {name}/")
    try:
      self._file = h5py.File(self.path, "r")
    except OSError as error:
      raise InputError(f"{self.path} is no readable HDF5 file: fetch it again") from error
    for key in ("data/ieeg", "data/seizures"):
      if key not in self._file:
        raise InputError(f"{self.path} lacks {key}")
    self._data, table = self._file["data/ieeg"], self._file["data/seizures"]
    if self._data.ndim != 2:
      raise InputError(f"{self.path}: data/ieeg is {self._data.shape}, not [channels, samples]")
    if not table.dtype.names or {"onsets", "offsets"} - set(table.dtype.names):
      raise InputError(f"{self.path}: data/seizures lacks the columns onsets and offsets")
    if "sampling_rate" not in self._file.attrs:
      raise InputError(f"{self.path} lacks the attribute sampling_rate")
    self.rate = float(self._file.attrs["sampling_rate"])
    self.channels = self._data.shape[0]
    self.seconds = self._data.shape[1] / self.rate
    columns = [
      np.asarray(table[column], np.float64).reshape(-1) for column in ("onsets", "offsets")
    ]
    self.seizures = np.stack(columns, axis=1)

  def segments(self, start: float, *, length: int, samples: int, rate: float = RATE) -> np.ndarray:
    """[T, C, N] float32 from `start` seconds on, at `rate` Hz (linear interpolation).

    Raises:
      InputError: the window leaves the recording, or a channel holds NaN or infinity there.
    """
    first, num = int(start * self.rate), round(length * samples * self.rate / rate)
    if first < 0 or first + num > self._data.shape[1]:
      raise InputError(f"{self.path}: the window at {start} s leaves its {self.seconds:.1f} s")
    try:
      found = np.asarray(self._data[:, first : first + num], np.float32)
    except OSError as error:
      raise InputError(
        f"{self.path}: data/ieeg cannot be read ({error}); a compressed file needs its filter: "
        f"{INSTALL}"
      ) from error
    bad = ~np.isfinite(found).all(1)
    if bad.any():
      raise InputError(
        f"{self.path}: channel {int(bad.argmax())} holds NaN or infinity between {start:.1f} and "
        f"{start + num / self.rate:.1f} s: leave the channel or that time out"
      )
    if num != length * samples:
      at = (np.arange(length * samples) + 0.5) * num / (length * samples) - 0.5
      found = np.stack([np.interp(at, np.arange(num), x) for x in found]).astype(np.float32)
    return found.reshape(self.channels, length, samples).swapaxes(0, 1)

  def label(self, start: float, end: float) -> int:
    """1 if a seizure meets the time from `start` to `end` seconds."""
    return int(((self.seizures[:, 0] <= end) & (self.seizures[:, 1] >= start)).any())

  def windows(self, rng, num: int, *, length: int, samples: int, rate: float = RATE):
    """(segments [num, T, C, N], labels [num]) at random times; the label is the last segment's."""
    segment = samples / rate
    latest = self.seconds - length * segment
    if latest < 0:
      raise InputError(f"{self.path}: {self.seconds:.1f} s hold no window of {length} segments")
    starts = rng.uniform(0, latest, num)
    size = dict(length=length, samples=samples, rate=rate)
    found = np.stack([self.segments(start, **size) for start in starts])
    ends = starts + length * segment
    return found, np.array([self.label(end - segment, end) for end in ends], np.int32)


def drawn(subjects: Sequence[Subject], num: int, key: tuple[int, ...], **size) -> Windows:
  """`num` random windows of one random subject; channels are padded to a MULTIPLE.

  size: length and samples, as of `Subject.windows`.
  """
  rng = np.random.default_rng(key)
  subject = subjects[rng.integers(len(subjects))]
  segments, labels = subject.windows(rng, num, **size)
  padding = -segments.shape[2] % MULTIPLE
  mask = np.arange(segments.shape[2] + padding) < segments.shape[2]
  segments = np.pad(segments, ((0, 0), (0, 0), (0, padding), (0, 0)))
  return Windows(segments, np.broadcast_to(mask, (num, len(mask))), labels)


def stream(subjects: Sequence[Subject], num: int, steps: int, seeds: tuple[int, ...], **size):
  """Grain dataset of `Windows` with leaves [seeds, ...], a subject a batch and seed."""
  import grain

  def batch(at: int) -> Windows:
    of_seed = [drawn(subjects, num, (seed, at), **size) for seed in seeds]
    return Windows(*(np.stack(leaves) for leaves in zip(*of_seed)))

  return grain.MapDataset.range(steps).map(batch)


def _h5py():
  try:
    import h5py
  except ModuleNotFoundError as error:
    raise InputError(f"SWEC-iEEG is HDF5, which needs the package h5py: {INSTALL}") from error
  with contextlib.suppress(ModuleNotFoundError):
    import hdf5plugin  # noqa: F401  (registers its filters)
  return h5py
