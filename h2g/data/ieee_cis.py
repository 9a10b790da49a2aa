"""IEEE-CIS-G: card transactions and what they share; about 4 % are fraud.

Transactions that have an identity record, and eleven types of what they were made with (cards,
product, addresses, e-mail domains), each with a reverse. 4,823 features of a transaction: one-hot
of M1-M9, the device and id_12-id_38 (missing is a value of its own, 0), then the numeric columns,
missing as 0, standardised; the amount as log10(|amount| + 1e-9). `TransactionID`, `isFraud` and
`TransactionDT` are no features. Then all are shifted by their smallest value and every row is
divided by its sum. Split 80/10/10 in the order of time. Score by F1.

Source: Kaggle, IEEE-CIS Fraud Detection; H2GB (arXiv 2407.10916) reads the four tables as here,
which leaves out the unlabelled transactions of the test tables; their columns `id-01`... are read
as further numeric columns that are missing everywhere, so they are zeros here, too. Unlike there,
nodes of a shared value are numbered by their first transaction in time.
"""

from collections.abc import Iterator
import csv
import io

import numpy as np

from h2g.data import published
from h2g.data import store
from h2g.errors import InputError
from h2g.graph import HeteroGraph

ARCHIVE = "IEEE-CIS.zip"
TRANSACTIONS, IDENTITIES = "train_transaction.csv", "train_identity.csv"
TESTS = ("test_transaction.csv", "test_identity.csv")
SHARED = (
  "card1", "card2", "card3", "card4", "card5", "card6", "ProductCD", "addr1", "addr2",
  "P_emaildomain", "R_emaildomain",
)  # fmt: skip
CATEGORIES = (
  *(f"M{k}" for k in range(1, 10)),
  "DeviceType",
  "DeviceInfo",
  *(f"id_{k}" for k in range(12, 39)),
)
KEY, LABEL, TIME = EXCLUDED = ("TransactionID", "isFraud", "TransactionDT")
AMOUNT = "TransactionAmt"
CHUNK = 1 << 12


def load(*, data_dir: str = "", normalised: bool = True) -> HeteroGraph:
  """Transactions, genuine (0) or fraud (1), and eleven types of shared values.

  Args:
    data_dir: folder of the four Kaggle tables or of `IEEE-CIS.zip`, where the converted
      `ieee-cis.store` is kept, too; "" for `ieee-cis` under H2G_DATA. What is missing is
      downloaded as H2GB packs it.
    normalised: shift and divide the rows, as H2GB's transform does when the graph is read; it
      leaves little of 4,823 standardised features.
  """
  url = published.HUB + ARCHIVE
  files = published.Files(
    "ieee-cis",
    data_dir,
    names=(TRANSACTIONS, IDENTITIES, *TESTS),
    archive=ARCHIVE,
    urls={ARCHIVE: url},
  )
  names, facts = ("genuine", "fraud"), {"source": url}
  slug = "ieee-cis" if normalised else "ieee-cis-plain"
  convert = lambda files, out: _convert(files, normalised, out)
  place = published.opened(
    files, slug, convert, target="transaction", class_names=names, facts=facts
  )
  return store.load(place)


def _convert(files, normalised: bool, out) -> None:
  identity_names, identities = _table(files, IDENTITIES, (KEY,))
  key, known = identity_names.index(KEY), {}
  for line, row in identities:
    if known.setdefault(row[key], row) is not row:
      raise InputError(f"{files.where(IDENTITIES)} line {line}: {KEY} {row[key]} stands twice")
  names, rows = _table(files, TRANSACTIONS, (*EXCLUDED, AMOUNT, *SHARED))
  every = names + [name for name in identity_names if name != KEY]
  for name in CATEGORIES:
    if name not in every:
      raise InputError(f"{files.where(TRANSACTIONS)}: column {name!r} is in neither table")
  extra = [name for test in TESTS for name in _table(files, test, (KEY,))[0] if name not in every]
  numeric = [name for name in every if name not in (*SHARED, *EXCLUDED, *CATEGORIES)]
  place = {name: k for k, name in enumerate(every)}
  picks = [place[name] for name in numeric]
  seen, labels, times, values = set(), [], [], []
  codes = {name: ({}, []) for name in (*SHARED, *CATEGORIES)}
  at, where = names.index(KEY), files.where(TRANSACTIONS)
  for line, row in rows:
    if row[at] in seen:
      raise InputError(f"{where} line {line}: {KEY} {row[at]} stands twice")
    seen.add(row[at])
    if row[at] not in known:
      continue
    other = known[row[at]]
    row = row + other[:key] + other[key + 1 :]
    try:
      label = float(row[place[LABEL]])
      if label not in (0, 1):
        raise ValueError(f"{LABEL} is {label}, neither 0 nor 1")
      labels.append(int(label))
      times.append(float(row[place[TIME]]))
      values.append(np.array([row[k] or "0" for k in picks], np.float64).astype(np.float32))
    except ValueError as error:
      raise InputError(f"{where} line {line}: {error}; a number is expected") from error
    for name, (numbers, column) in codes.items():
      value = _same(row[place[name]])
      column.append(-1 if value == "" else numbers.setdefault(value, len(numbers)))
  if not labels:
    raise InputError(f"{where}: no transaction is in {IDENTITIES}")
  order = np.argsort(np.array(times), kind="stable")
  values = np.stack(values)[order].astype(np.float64)
  amount = numeric.index(AMOUNT)
  values[:, amount] = np.log10(np.abs(values[:, amount]) + 1e-9)
  values = ((values - values.mean(0)) / (values.std(0) + 1e-9)).astype(np.float32)
  one_hot = []
  for name in CATEGORIES:
    numbers, column = codes[name]
    column = np.array(column)[order]
    if (column < 0).any():
      column[column < 0] = numbers.setdefault("0.0", len(numbers))
    one_hot.append((column, len(numbers)))
  widths = np.cumsum([0, *(size for _, size in one_hot)])
  least = min(0.0, float(values.min()))
  for begin in range(0, len(order), CHUNK):
    rows = np.zeros((len(order[begin : begin + CHUNK]), int(widths[-1])), np.float32)
    for start, (column, _) in zip(widths, one_hot):
      rows[np.arange(len(rows)), start + column[begin : begin + CHUNK]] = 1
    zeros = np.zeros((len(rows), len(extra)), np.float32)
    rows = np.concatenate([rows, values[begin : begin + CHUNK], zeros], axis=1)
    if normalised:
      rows -= least
      rows /= np.maximum(rows.sum(1, keepdims=True), 1)
    out.features("transaction", rows)
  out.labels(np.array(labels)[order])
  for name in SHARED:
    column = np.array(codes[name][1])[order]
    rows = np.flatnonzero(column >= 0)
    found, first, inverse = np.unique(column[rows], return_index=True, return_inverse=True)
    out.num_nodes(name, len(found))
    out.edges(("transaction", "to", name), rows, np.argsort(np.argsort(first))[inverse])
  ends = int(0.8 * len(order)), int(0.8 * len(order)) + int(0.1 * len(order))
  part = np.digitize(np.arange(len(order)), ends)
  for k, name in enumerate(("train", "val", "test")):
    out.split(name, part == k)


def _same(value: str) -> str:
  """The value as text, numbers in one form: 19 and 19.0 are one category."""
  try:
    return repr(float(value))
  except ValueError:
    return value


def _table(files, name: str, columns) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
  """(names of the columns, (line, row) of each row) of a table, read as it is asked for."""
  where = files.where(name)

  def read():
    with files.open(name) as file:
      text = io.TextIOWrapper(file, "utf-8-sig", errors="replace", newline="")
      reader = csv.reader(text)
      yield next(reader, [])
      for row in reader:
        if row and len(row) != len(names):
          raise InputError(
            f"{where} line {reader.line_num} has {len(row)} fields, {len(names)} are expected: the "
            "file is truncated"
          )
        if row:
          yield reader.line_num, row

  rows = read()
  try:
    names = next(rows)
    for column in columns:
      if column not in names:
        raise InputError(f"{where}: column {column!r} is missing; the first line is no such table")
  except csv.Error as error:
    raise InputError(f"{where}: {error}") from error
  return names, rows
