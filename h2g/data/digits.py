"""Handwritten digits: 1,797 images of 8 x 8 pixels, ten classes.

Read from the Python package `scikit-learn`, which ships the file (BSD); nothing of it is imported.

Source: E. Alpaydin and C. Kaynak, UCI Optical Recognition of Handwritten Digits (test part).
"""

import gzip
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from h2g.data import files as shared
from h2g.data.checksums import SHA256
from h2g.errors import InputError

INSTALL = "pip install scikit-learn"
FILE = "digits.csv.gz"


class Digits(NamedTuple):
  """images: [1797, 8, 8] float32 in [0, 1]; labels: [1797] int32."""

  images: np.ndarray
  labels: np.ndarray


def load(files: str | Path | None = None, *, digests=SHA256["digits"]) -> Digits:
  """All digits, in the order of the file.

  Args:
    files: folder of digits.csv.gz; by default that of the installed package.
    digests: {file: sha256}.
  Raises:
    InputError: the package is not installed, or its file is damaged or has changed.
  """
  source = shared.Source("digits", digests, _folder() if files is None else files)
  path = source.folder / FILE
  content = source.read(FILE)
  try:
    rows = np.loadtxt(gzip.decompress(content).decode().splitlines(), delimiter=",", dtype=np.int64)
  except (*shared.DAMAGED, EOFError) as error:
    raise InputError(f"{path} is no table of integers: {error}") from error
  if rows.ndim != 2 or rows.shape[1] != 65:
    raise InputError(f"{path} has rows of {rows.shape[-1]} numbers, not 64 pixels and a label")
  return Digits((rows[:, :64] / 16).astype(np.float32).reshape(-1, 8, 8), rows[:, 64].astype("i4"))


def _folder() -> Path:
  try:
    found = metadata.distribution("scikit-learn").locate_file("sklearn/datasets/data")
  except metadata.PackageNotFoundError as error:
    raise InputError(
      f"the digits are read from the package scikit-learn, which is not installed: {INSTALL}, or "
      "give files= a folder that holds digits.csv.gz"
    ) from error
  return Path(str(found))
