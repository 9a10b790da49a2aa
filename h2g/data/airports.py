"""Air traffic of Brazil, Europe and the USA: one node type, no features, four quartiles of
activity. For smoke tests of learning from structure alone.

Source: leoribeiro/struc2vec, `graph/` (KDD 2017). Licence: MIT.
"""

from pathlib import Path

import numpy as np

from h2g.data import files as shared
from h2g.data.checksums import SHA256
from h2g.graph import HeteroGraph

GRAPHS = ("brazil", "europe", "usa")


def load(
  graph: str = "brazil", *, files: str | Path | None = None, digests=SHA256["airports"]
) -> HeteroGraph:
  """Airports joined by `flight`, each pair listed once (add reverses), none to itself.

  Args:
    graph: "brazil" (131 airports), "europe" (399) or "usa" (1,190).
    files, digests: as in `imdb_nshe.load`.
  """
  shared.choose("airports", graph=(graph, GRAPHS))
  source = shared.Source("airports", digests, files)
  names = f"labels-{graph}-airports.txt"
  ids, labels = source.integers(names, ("node", "label"), skip=1)
  rows = shared.number(map(str, ids), path=source.folder / names, column="node")
  ends = source.integers(f"{graph}-airports.edgelist", ("from", "to"))
  path = source.folder / f"{graph}-airports.edgelist"
  elsewhere = ends[0] != ends[1]
  ends = [side[elsewhere] for side in ends]
  return HeteroGraph.from_arrays(
    nodes={"airport": {"labels": labels}},
    edges={
      ("airport", "flight", "airport"): np.stack(
        [
          shared.lookup(rows, map(str, side), path=path, column=column, what="airport")
          for side, column in zip(ends, ("from", "to"))
        ]
      )
    },
    target="airport",
    class_names=tuple(f"quartile {quartile + 1}" for quartile in range(4)),
  )
