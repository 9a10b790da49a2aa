"""Heterophilous graphs of one node and edge type with ten published splits each.

The `_filtered` versions drop the duplicated nodes of the old chameleon and squirrel: prefer them.

Source: yandex-research/heterophilous-graphs, `data/` (arXiv 2302.11640). Licence: MIT.
"""

from pathlib import Path

import numpy as np

from h2g.data import encode
from h2g.data import files as shared
from h2g.data.checksums import SHA256
from h2g.errors import InputError
from h2g.graph import HeteroGraph

GRAPHS = tuple(name.removesuffix(".npz") for name in sorted(SHA256["heterophilous-npz"]))
WORDS = ("features", "nodes")


def load(
  graph: str = "chameleon_filtered",
  *,
  fold: int = 0,
  words: str = "features",
  files: str | Path | None = None,
  digests=SHA256["heterophilous-npz"],
) -> HeteroGraph:
  """Nodes of type `node`, joined by `link`; each pair once unless the name ends in `_directed`.

  Args:
    graph: name of the file, one of `GRAPHS`.
    fold: which of the ten published splits is `splits` train, val, test.
    words: "nodes" makes the set heterogeneous: every binary feature becomes a node of type `word`,
      joined by `has`, and the features are left out.
    files, digests: as in `imdb_nshe.load`.
  """
  shared.choose(
    "heterophilous_npz",
    graph=(graph, GRAPHS),
    fold=(fold, tuple(range(10))),
    words=(words, WORDS),
  )
  name = f"{graph}.npz"
  source = shared.Source("heterophilous-npz", digests, files)
  found = source.arrays(
    name,
    node_features="fiub",
    node_labels="iu",
    edges="iu",
    train_masks="b",
    val_masks="b",
    test_masks="b",
  )
  x, labels = found["node_features"], found["node_labels"]
  path = source.folder / name
  if found["edges"].ndim != 2 or found["edges"].shape[1] != 2 or x.ndim != 2:
    raise InputError(f"{path}: edges are {list(found['edges'].shape)}, [E, 2] is expected")
  nodes = {"node": {"labels": labels}}
  edges = {("node", "link", "node"): found["edges"].T}
  if words == "nodes":
    if not np.isin(x, (0, 1)).all():
      raise InputError(f"{graph} has features other than 0 and 1: words=nodes needs binary ones")
    nodes["word"] = {"num_nodes": x.shape[1]}
    edges["node", "has", "word"] = np.stack(np.nonzero(x))
  elif np.isin(x, (0, 1)).all():
    nodes["node"]["features"] = x
  else:
    nodes["node"]["features"] = encode.numeric(*np.asarray(x, np.float64).T)
  splits = {}
  for part in ("train", "val", "test"):
    masks = found[f"{part}_masks"]
    if masks.shape != (10, len(labels)):
      raise InputError(f"{path}: {part}_masks are {list(masks.shape)}, ten of {len(labels)} nodes")
    splits[part] = masks[fold]
  return HeteroGraph.from_arrays(nodes=nodes, edges=edges, target="node", splits=splits)
