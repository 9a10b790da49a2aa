"""Raw columns as node features: numbers, categories, words. Pure functions of the columns."""

from collections.abc import Iterable
import re
import zlib

import numpy as np

WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")


def numeric(*columns, log: bool = False) -> np.ndarray:
  """[N, K] float32: each column [N] with mean 0 and deviation 1 over what is known.

  What is missing (NaN) becomes 0, and a column of flags follows where anything is. A constant
  column becomes zeros. `log` standardises log(1 + x).
  """
  out = []
  for column in columns:
    column = np.asarray(column, np.float64)
    missing = np.isnan(column)
    known = column[~missing]
    known = np.log1p(known) if log else known
    deviation = known.std() if len(known) else 0.0
    filled = np.zeros(len(column))
    filled[~missing] = (known - known.mean()) / deviation if deviation > 0 else 0.0
    out.append(filled)
    if missing.any():
      out.append(missing)
  return np.stack(out, axis=1).astype(np.float32)


def one_hot(values: Iterable, names: Iterable | None = None) -> np.ndarray:
  """[N, K] float32; K the sorted distinct values, or `names`. Others ("" always) are zeros."""
  values = list(values)
  at = {name: k for k, name in enumerate(sorted(set(values) - {""}) if names is None else names)}
  out = np.zeros((len(values), len(at)), np.float32)
  for row, value in enumerate(values):
    if value in at:
      out[row, at[value]] = 1.0
  return out


def words(texts: Iterable[str], dim: int = 256) -> np.ndarray:
  """[N, dim] float32: words hashed (crc32) to signed columns, tf-idf, rows of length 1.

  x[n, h(w)] += s(w) log(1 + count) log(N / df(w)), s(w) = 1 or -1; the same on every machine.
  """
  texts = [[word.lower() for word in WORD.findall(text)] for text in texts]
  seen = {}
  for found in texts:
    for word in set(found):
      seen[word] = seen.get(word, 0) + 1
  code = {word: zlib.crc32(word.encode()) for word in seen}
  out = np.zeros((len(texts), dim))
  for row, found in enumerate(texts):
    for word in sorted(set(found)):
      weight = np.log1p(found.count(word)) * np.log(len(texts) / seen[word])
      out[row, (code[word] >> 1) % dim] += weight if code[word] & 1 else -weight
  length = np.linalg.norm(out, axis=1, keepdims=True)
  return np.divide(out, length, out=out, where=length > 0).astype(np.float32)
