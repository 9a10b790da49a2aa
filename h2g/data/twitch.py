"""Twitch streamers: who follows whom, and what they like; one graph per language.

Heterophilic with a weak signal; the graphs share their features, so one may train on one language
and test on another.

Source: benedekrozemberczki/MUSAE, `input/` (J. Complex Networks 9, 2021). Licence: GPL-3.0
(repository).
"""

import json
from pathlib import Path

import numpy as np

from h2g.data import encode
from h2g.data import files as shared
from h2g.data.checksums import SHA256
from h2g.errors import InputError
from h2g.graph import HeteroGraph

GRAPHS = ("DE", "ENGB", "ES", "PTBR")
FEATURES = 3170  # of the vocabulary that the languages share


def load(
  graph: str = "ENGB",
  *,
  vocabulary: bool = False,
  files: str | Path | None = None,
  digests=SHA256["twitch"],
) -> HeteroGraph:
  """Streamers (label: flagged as mature) and what they like; `follows` and `has`.

  Streamer features: log(1 + days), log(1 + views), standardised, and whether partner. A friendship
  is listed once.

  Args:
    graph: "DE", "ENGB", "ES" or "PTBR".
    vocabulary: keep all 3,170 feature nodes, so that a row means the same in every graph; otherwise
      those that are used here.
    files, digests: as in `imdb_nshe.load`.
  """
  shared.choose("twitch", graph=(graph, GRAPHS))
  source = shared.Source("twitch", digests, files)
  name = f"target/{graph}_target.csv"
  table = source.table(name, ("days", "mature", "views", "partner", "new_id"))
  rows = shared.number(table["new_id"], path=source.folder / name, column="new_id")
  flags = {}
  for column in ("mature", "partner"):
    if strange := set(table[column]) - {"True", "False"}:
      raise InputError(
        f"{source.folder / name}: {column} {sorted(strange)[0]!r} is no True or False"
      )
    flags[column] = np.array([value == "True" for value in table[column]])
  number = lambda column: shared.numbers(table[column], path=source.folder / name, column=column)
  x = [encode.numeric(number("days"), number("views"), log=True), flags["partner"][:, None]]

  path = source.folder / f"features/{graph}.json"
  try:
    likes = json.loads(source.text(f"features/{graph}.json"))
    pairs = [(streamer, int(liked)) for streamer, found in likes.items() for liked in found]
  except (ValueError, TypeError, AttributeError) as error:
    if isinstance(error, InputError):
      raise
    raise InputError(f"{path} is no JSON of lists of features ({error}): fetch it again") from error
  liked = np.array([feature for _, feature in pairs], np.int64).reshape(-1)
  if vocabulary:
    count = FEATURES
  else:
    used, liked = np.unique(liked, return_inverse=True)
    count = len(used)
  name = f"edges/{graph}_edges.csv"
  edges = source.table(name, ("from", "to"))
  lookup = lambda values, file, column: shared.lookup(
    rows, values, path=source.folder / file, column=column, what="streamer"
  )
  streamers = lookup([streamer for streamer, _ in pairs], f"features/{graph}.json", "node")
  return HeteroGraph.from_arrays(
    nodes={
      "streamer": {
        "features": np.concatenate(x, axis=1),
        "labels": flags["mature"].astype(np.int64),
      },
      "feature": {"num_nodes": count},
    },
    edges={
      ("streamer", "follows", "streamer"): tuple(
        lookup(edges[column], name, column) for column in ("from", "to")
      ),
      ("streamer", "has", "feature"): (streamers, liked),
    },
    target="streamer",
    class_names=("not mature", "mature"),
  )
