"""IMDB movies with their actors and directors: three genres, no features.

Source: Andy-Border/NSHE, `data/imdb` (IJCAI 2020). Licence: none stated; derived from IMDb, whose
terms are non-commercial.
"""

from pathlib import Path

import numpy as np

from h2g.data import files as shared
from h2g.data.checksums import SHA256
from h2g.errors import InputError
from h2g.graph import HeteroGraph

RELATIONS = {0: "actor", 1: "director"}


def load(*, files: str | Path | None = None, digests=SHA256["imdb-nshe"]) -> HeteroGraph:
  """Movies 3,676 (labelled), actors 4,353, directors 1,678; `acted_by` and `directed_by`.

  Args:
    files: folder of the original files; by default imdb-nshe in `files.root()`.
    digests: {file: sha256} that they must have.
  Raises:
    InputError: a file is missing, changed, or names what it should not.
  """
  source = shared.Source("imdb-nshe", digests, files)
  rows = [line.split() for line in source.text("node2id.txt").splitlines()[1:]]
  path = source.folder / "node2id.txt"
  place, counts = {}, {"m": 0, "a": 0, "d": 0}
  for at, row in enumerate(rows):
    if len(row) != 2 or row[0][:1] not in counts:
      raise InputError(f"{path} line {at + 2} is {' '.join(row)!r}: a name (m0, a0, d0) and its id")
    if row[1] in place:
      raise InputError(f"{path} line {at + 2}: id {row[1]} stands twice; every node has one")
    place[row[1]] = (row[0][0], counts[row[0][0]])
    counts[row[0][0]] += 1
  (labels,) = source.integers("imdb_m_label.txt", ("label",))
  if len(labels) != counts["m"]:
    raise InputError(f"{source.folder}: {len(labels)} labels for {counts['m']} movies")
  movies, others, relations, _ = source.integers(
    "relations.txt", ("movie", "other", "relation", "weight")
  )
  path, ends = source.folder / "relations.txt", {name: ([], []) for name in RELATIONS.values()}
  for at, (movie, other, relation) in enumerate(zip(movies, others, relations)):
    if relation not in RELATIONS:
      raise InputError(f"{path} line {at + 1}: unknown relation {relation}, known are 0 and 1")
    kind = RELATIONS[relation]
    for found, prefix, side in ((movie, "m", 0), (other, kind[0], 1)):
      if place.get(str(found), ("", 0))[0] != prefix:
        raise InputError(f"{path} line {at + 1}: node {found} is no {('movie', kind)[side]}")
      ends[kind][side].append(place[str(found)][1])
  return HeteroGraph.from_arrays(
    nodes={
      "movie": {"labels": labels},
      "actor": {"num_nodes": counts["a"]},
      "director": {"num_nodes": counts["d"]},
    },
    edges={
      ("movie", f"{verb}_by", kind): tuple(np.array(side) for side in ends[kind])
      for kind, verb in (("actor", "acted"), ("director", "directed"))
    },
    target="movie",
    class_names=("genre 0", "genre 1", "genre 2"),
  )
