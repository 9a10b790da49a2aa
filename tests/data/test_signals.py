"""Signals: synthetic subjects, the EEG recording, SWEC-iEEG in small files of the exact format."""

import jax
import numpy as np
import pytest

from h2g.data import eeg_eye_state
from h2g.data import recordings
from h2g.data import subjects
from h2g.data import swec_ieeg
from h2g.errors import InputError


def test_waves_travel_along_the_channels():
  found = subjects.recordings(np.array([5, 3]), seed=1, length=400, channels=5, noise=0.0)
  again = subjects.recordings(np.array([5, 3]), seed=1, length=400, channels=5, noise=0.0)
  np.testing.assert_array_equal(found.signals, again.signals)
  assert not found.signals[1, :, 3:].any()
  # A sum of two sinusoids at any channel obeys the same recurrence: two lags of samples each way.
  for x in found.signals[0].T.astype(np.float64):
    rows = np.stack([x[3:-1] + x[1:-3], x[2:-2]], axis=1)
    residual = np.linalg.lstsq(rows, x[4:] + x[:-4], rcond=None)[1]
    assert residual.sum() < 1e-4


def test_a_window_has_the_label_of_its_last_segment():
  at = np.arange(40, dtype=np.int32)
  found = recordings.Recordings(
    at[None, :, None].astype(np.float32), np.array([1]), (at >= 20)[None].astype(np.int32)
  )
  draw = lambda key: recordings.windows(found, key, subjects=1, each=64, length=3, samples=5)
  cut = jax.jit(draw)(jax.random.key(0))
  ends = np.asarray(cut.segments)[:, -1, 0]  # its samples are their own places
  np.testing.assert_array_equal(cut.labels, (ends >= 20).sum(1) >= 3)
  assert 0 < np.asarray(cut.labels).sum() < 64


def test_discharges_spread_or_jump_at_the_same_times():
  found = subjects.recordings(np.array([6, 4]), seed=0, length=800, channels=6)
  draw = jax.jit(
    lambda key: recordings.windows(found, key, subjects=2, each=64, length=12, samples=32)
  )
  quiet = draw(jax.random.key(0))
  assert quiet.segments.shape == (128, 12, 6, 32)
  loud = jax.jit(subjects.discharges)(quiet, jax.random.key(1))
  labels, mask = np.asarray(loud.labels), np.asarray(quiet.mask)
  added = np.abs(np.asarray(loud.segments - quiet.segments)).max(-1) > 1.0  # [B, T, C]
  assert not added.transpose(0, 2, 1)[~mask].any() and 40 < labels.sum() < 88
  assert (np.diff(added.astype(int), axis=1) >= 0).all()  # once seized, seized to the end
  onset = np.where(added.any(1), added.argmax(1), 99)
  spreads = []
  for at, (row, here) in enumerate(zip(onset, mask)):
    steps = np.abs(np.diff(row[here]))
    source = row[here].min()
    assert np.bincount(row[here] - source)[0] == 1 and 1 <= source <= 3
    spreads.append((steps == 1).all())
    assert spreads[-1] or labels[at] == 0
  assert np.mean(np.array(spreads)[labels == 0]) < 0.5


def test_the_eeg_is_split_by_time_and_repaired(data_dir):
  parts = eeg_eye_state.load()
  assert [len(parts[k].labels) for k in ("train", "val", "test")] == [8988, 2996, 2996]
  np.testing.assert_allclose(parts["train"].signals.mean(0), 0, atol=1e-3)
  assert max(np.abs(part.signals).max() for part in parts.values()) < 40
  assert {0, 1} == set(np.unique(parts["test"].labels))


HEADER = "".join(f"@ATTRIBUTE {c} NUMERIC\n" for c in eeg_eye_state.CHANNELS)
HEADER += "@ATTRIBUTE eyeDetection {0,1}\n@DATA\n"


@pytest.mark.parametrize(
  "text, message",
  [
    ("@ATTRIBUTE a NUMERIC\n@DATA\n", "has the columns a"),
    (HEADER + "1,2,3\n", "data row 1 has 3 values, not 15"),
    (HEADER + "1," * 14 + "2\n", "eyeDetection must be 0 or 1"),
    (HEADER + "1," * 13 + "x,0\n", "row 1: AF4 'x' is no number"),
    (HEADER + ("?," + "1," * 13 + "0\n") * 3, "channel AF3 has no finite sample"),
  ],
)
def test_another_eeg_file_is_named(tmp_path, text, message):
  (tmp_path / eeg_eye_state.FILE).write_text(text)
  with pytest.raises(InputError, match=message) as error:
    eeg_eye_state.load(tmp_path, digests={})
  assert eeg_eye_state.FILE in str(error.value)


def swec(folder, *, rate=512.0, nan=None, without=()):
  """FOLDER/ID01/ID01_total.h5: 3 channels, 8 s, a seizure from 4 to 5 s."""
  h5py = pytest.importorskip("h5py", reason="SWEC-iEEG is HDF5")
  (folder / "ID01").mkdir(exist_ok=True, parents=True)
  data = np.arange(3)[:, None] + np.linspace(0, 8, int(8 * rate), endpoint=False)[None]
  if nan is not None:
    data[nan, 100] = np.nan
  table = np.array([(4.0, 5.0)], dtype=[("onsets", "f8"), ("offsets", "f8")])
  with h5py.File(folder / "ID01/ID01_total.h5", "w") as file:
    for name, value in {"data/ieeg": data.astype("f4"), "data/seizures": table}.items():
      if name not in without:
        file[name] = value
    if "sampling_rate" not in without:
      file.attrs["sampling_rate"] = rate
  return folder


def test_swec_windows_and_their_labels(tmp_path):
  subject = swec_ieeg.Subject(swec(tmp_path), "ID01")
  assert (subject.channels, subject.seconds) == (3, 8.0)
  found = subject.segments(2.0, length=2, samples=512)
  assert found.shape == (2, 3, 512)
  np.testing.assert_allclose(found[1, 2, 0], 2 + 3.0, atol=1e-3)
  assert [subject.label(*x) for x in ((3, 3.9), (3, 4.0), (4.5, 4.6), (5.1, 6))] == [0, 1, 1, 0]
  segments, labels = subject.windows(np.random.default_rng(0), 5, length=2, samples=512)
  assert segments.shape == (5, 2, 3, 512) and labels.shape == (5,)
  # Another rate is brought to ours: the same times, half the samples.
  slow = swec_ieeg.Subject(swec(tmp_path / "slow", rate=256.0), "ID01")
  np.testing.assert_allclose(slow.segments(2.0, length=2, samples=512), found, atol=5e-3)


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(nan=1), r"ID01_total.h5: channel 1 holds NaN or infinity between 0.0 and 2.0 s"),
    (dict(without=("data/seizures",)), "lacks data/seizures"),
    (dict(without=("sampling_rate",)), "lacks the attribute sampling_rate"),
  ],
)
def test_what_swec_lacks_is_named(tmp_path, change, message):
  with pytest.raises(InputError, match=message):
    swec_ieeg.Subject(swec(tmp_path, **change), "ID01").segments(0.0, length=2, samples=512)


def test_other_swec_files_are_named(tmp_path):
  swec(tmp_path)
  with pytest.raises(InputError, match=r"ID02_total\.h5 does not exist"):
    swec_ieeg.Subject(tmp_path, "ID02")
  (tmp_path / "ID01/ID01_total.h5").write_text("no")
  with pytest.raises(InputError, match="no readable HDF5"):
    swec_ieeg.Subject(tmp_path, "ID01")
  with pytest.raises(InputError, match=r"data\.path is empty"):
    swec_ieeg.Subject("", "ID01")
