"""Many rows of a CSR array at once: their entries, a uniform choice of them, and index arrays.

No loop runs over rows or entries; every function reads and makes only what it returns.
"""

import numpy as np


def bounds(indptr: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(first position, number of entries) of each of the rows, [n] int64 each."""
  starts = indptr[rows].astype(np.int64)
  return starts, indptr[rows + 1] - starts


def ranges(starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(i, starts[i] + j) for j < counts[i], i and j ascending; both int64."""
  row = np.repeat(np.arange(len(counts)), counts)
  position = np.repeat(starts - np.cumsum(counts) + counts, counts)
  position += np.arange(len(position))
  return row, position


def entries(
  starts: np.ndarray, counts: np.ndarray, most: int | None, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """`ranges`, but of a row that has more entries a uniform choice of `most`, ascending too."""
  if most is None:
    return ranges(starts, counts)
  row, offset = choose(counts, most, rng)
  return row, starts[row] + offset


def choose(
  counts: np.ndarray, most: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """(i, offset): min(most, counts[i]) of range(counts[i]), every such subset alike, ascending."""
  row, offset = ranges(np.zeros(len(counts), np.int64), np.minimum(counts, most))
  large = np.flatnonzero(counts > most)
  if len(large) and most:
    begin = np.cumsum(np.minimum(counts, most))[large] - most
    offset[begin[:, None] + np.arange(most)] = _subsets(counts[large], most, rng)
  return row, offset


def _subsets(counts: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
  """[n, size]: a uniform subset of range(counts[i]), counts[i] > size > 0, ascending."""
  subsets = np.empty((len(counts), size), np.int64)
  dense = counts <= 4 * size
  for how, rows in ((_smallest_keys, dense), (_drawn_until_distinct, ~dense)):
    if rows.any():
      subsets[rows] = np.sort(how(counts[rows], size, rng), axis=1)
  return subsets


def _smallest_keys(counts, size, rng) -> np.ndarray:
  """The places of the smallest of random keys: for rows of which much is taken."""
  keys = rng.random((len(counts), counts.max()))
  keys[np.arange(keys.shape[1]) >= counts[:, None]] = 2.0
  return np.argpartition(keys, size - 1, axis=1)[:, :size]


def _drawn_until_distinct(counts, size, rng) -> np.ndarray:
  """What was drawn twice is drawn again: for rows of which little is taken.

  No number is preferred, so that every set of this size is as likely as any other.
  """
  draw = lambda bounds: (rng.random(bounds.shape) * bounds).astype(np.int64)
  drawn = draw(np.broadcast_to(counts[:, None], (len(counts), size)))
  rows = np.arange(len(drawn))
  while len(rows):
    part = np.sort(drawn[rows], axis=1)
    again = part[:, 1:] == part[:, :-1]
    bad = again.any(axis=1)
    drawn[rows] = part
    rows, part, again = rows[bad], part[bad], again[bad]
    i, j = np.nonzero(again)
    part[i, j] = draw(counts[rows[i]])
    drawn[rows] = part
  return drawn


def distinct(rows: np.ndarray, table: np.ndarray) -> np.ndarray:
  """Each value once, in the order of one of its places. Leaves marks in `table`: overwrite them."""
  marks = np.arange(len(rows), dtype=table.dtype)
  table[rows] = marks
  return rows[table[rows] == marks].astype(np.int64)


def argsort(ids: np.ndarray, bound: int) -> np.ndarray:
  """[n] int32 stable order of ids < bound."""
  if bound <= 1 << 16:  # NumPy sorts 16-bit integers by radix, several times faster
    ids = ids.astype(np.uint16)
  return np.argsort(ids, kind="stable").astype(np.int32)
