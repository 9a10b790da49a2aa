"""The digits of scikit-learn, read without importing it."""

import gzip
from importlib import metadata

import numpy as np
import pytest

from h2g.data import digits
from h2g.errors import InputError


def test_the_digits_of_the_package():
  try:
    metadata.distribution("scikit-learn")
  except metadata.PackageNotFoundError:
    pytest.skip("needs the package scikit-learn: extra [dev]")
  found = digits.load()
  assert found.images.shape == (1797, 8, 8) and found.labels.shape == (1797,)
  assert found.images.min() == 0 and found.images.max() == 1
  assert np.bincount(found.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


@pytest.mark.parametrize(
  "content, message",
  [
    (b"no gzip", "digits.csv.gz is no table of integers"),
    (gzip.compress(b"1,2,3\n4,5,6\n"), "rows of 3 numbers, not 64 pixels and a label"),
  ],
  ids=["no archive", "another table"],
)
def test_a_damaged_file_is_named(tmp_path, content, message):
  (tmp_path / digits.FILE).write_bytes(content)
  with pytest.raises(InputError, match=message):
    digits.load(tmp_path, digests={})
  with pytest.raises(InputError, match="is not the original file"):
    digits.load(tmp_path)
