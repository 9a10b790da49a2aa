"""LIAR: 12,836 political statements that a fact checker rated, and who said them where.

Truly heterophilic on every relation, rich in text, and hard. The counts of the speaker's past
ratings include the statement's own: they are never read.

Source: Wang, ACL 2017 (arXiv 1705.00648), as in tfs4/liar_dataset. Licence: research only.
"""

from pathlib import Path

import numpy as np

from h2g.data import encode
from h2g.data import files as shared
from h2g.data.checksums import SHA256
from h2g.errors import InputError
from h2g.graph import HeteroGraph

RATINGS = ("pants-fire", "false", "barely-true", "half-true", "mostly-true", "true")
LABELS = {"six": RATINGS, "two": ("false", "true")}
PARTS = {"train": "train.tsv", "val": "valid.tsv", "test": "test.tsv"}
WHO = ("speaker", "job", "state", "party")
COLUMNS = ("id", "label", "text", "subject", *WHO, *[""] * 5, "context")
RELATIONS = {
  "speaker": "said_by",
  "subject": "about",
  "context": "said_in",
  "job": "by_holder_of",
  "state": "from_state",
  "party": "of_party",
}
MISSING = ("", "None", "N/A")


def load(
  label: str = "six",
  *,
  words: int = 256,
  files: str | Path | None = None,
  digests=SHA256["liar"],
) -> HeteroGraph:
  """Statements (labelled), speakers, subjects, contexts, jobs, states and parties.

  Args:
    label: "six" ratings, or "two": {half-true, mostly-true, true} against the rest.
    words: columns that the words of a statement are hashed to (tf-idf); its only features.
    files, digests: as in `imdb_nshe.load`.
  Returns:
    HeteroGraph with the published `splits` train, val and test.
  """
  shared.choose("liar", label=(label, tuple(LABELS)))
  source = shared.Source("liar", digests, files)
  table, part = {}, []
  for name, file in PARTS.items():
    found = source.table(file, COLUMNS, delimiter="\t", header=False, quoting=False)
    for at, value in enumerate(found["label"]):
      if value not in RATINGS:
        raise InputError(
          f"{source.folder / file} row {at + 1}: label {value!r} is none of {', '.join(RATINGS)}"
        )
    part += [name] * len(found["id"])
    for column, values in found.items():
      table.setdefault(column, []).extend(values)
  shared.number(table["id"], path=source.folder, column="statement")
  ratings = np.array([RATINGS.index(value) for value in table["label"]])
  nodes = {
    "statement": {
      "features": encode.words(table["text"], words),
      "labels": ratings if label == "six" else (ratings >= RATINGS.index("half-true")).astype(int),
    }
  }
  edges = {}
  for kind, relation in RELATIONS.items():
    pairs = [
      (row, name)
      for row, value in enumerate(table[kind])
      for name in (value.split(",") if kind == "subject" else (value,))
      if name not in MISSING
    ]
    names = {name: at for at, name in enumerate(sorted({name for _, name in pairs}))}
    nodes[kind] = {"num_nodes": len(names)}
    edges["statement", relation, kind] = (
      np.array([row for row, _ in pairs]),
      np.array([names[name] for _, name in pairs]),
    )
  return HeteroGraph.from_arrays(
    nodes=nodes,
    edges=edges,
    target="statement",
    class_names=LABELS[label],
    splits={name: np.array(part) == name for name in PARTS},
  )
