"""The HeCo versions of Freebase movies, ACM papers and AMiner papers: homophilic controls.

Source: liun-online/HeCo, `data/` (KDD 2021). Licence: none stated.
"""

import functools
from pathlib import Path

import numpy as np

from h2g.data import files as shared
from h2g.data.checksums import SHA256
from h2g.errors import InputError
from h2g.graph import HeteroGraph

# Per set: the target, {file: (relation, other type, its number of nodes)}, {type: feature file}.
SETS = {
  "freebase": (
    "movie",
    {
      "ma": ("acted_by", "actor", 33401),
      "md": ("directed_by", "director", 2502),
      "mw": ("written_by", "writer", 4459),
    },
    {},
  ),
  "acm": (
    "paper",
    {"pa": ("written_by", "author", 7167), "ps": ("about", "subject", 60)},
    {"paper": "p_feat.npz", "author": "a_feat.npz"},
  ),
  "aminer": (
    "paper",
    {"pa": ("written_by", "author", 13329), "pr": ("cites", "reference", 35890)},
    {},
  ),
}
PER_CLASS = (20, 40, 60)


def load(
  graph: str, *, per_class: int = 20, files: str | Path | None = None, digests=None
) -> HeteroGraph:
  """One of the three sets.

  Args:
    graph: "freebase", "acm" or "aminer".
    per_class: 20, 40 or 60 training labels per class: which published split is `splits` train,
      val and test. All three are there as train_20, val_20, ...
    files, digests: as in `imdb_nshe.load`.
  Returns:
    HeteroGraph; ACM papers and authors have 1,902 columns of words (rows of length 1), everything
    else is featureless.
  """
  shared.choose("heco", graph=(graph, tuple(SETS)), per_class=(per_class, PER_CLASS))
  slug = f"heco-{graph}"
  source = shared.Source(slug, SHA256[slug] if digests is None else digests, files)
  target, relations, features = SETS[graph]
  array = lambda name, kinds: shared.parse_npy(source.read(name), source.folder / name, kinds)
  labels = array("labels.npy", "iuf").astype(np.int64)
  nodes = {target: {"labels": labels}}
  edges = {}
  for file, (relation, other, count) in relations.items():
    nodes[other] = {"num_nodes": count}
    edges[target, relation, other] = tuple(source.integers(f"{file}.txt", (target, other)))
  for kind, name in features.items():
    rows, columns, values, shape = shared.sparse(source.read(name), source.folder / name)
    dense = np.zeros(shape, np.float32)
    dense[rows, columns] = values
    length = np.linalg.norm(dense, axis=1, keepdims=True)  # given are shares of the row's words
    nodes[kind]["features"] = np.divide(dense, length, out=dense, where=length > 0)
  splits = {}
  for size in PER_CLASS:
    for part in ("train", "val", "test"):
      ids = array(f"{part}_{size}.npy", "iu")
      if len(ids) and (ids.min() < 0 or ids.max() >= len(labels)):
        raise InputError(f"{source.folder / f'{part}_{size}.npy'} names nodes that do not exist")
      mask = np.zeros(len(labels), bool)
      mask[ids] = True
      splits[f"{part}_{size}"] = mask
  chosen = {part: splits[f"{part}_{per_class}"] for part in ("train", "val", "test")}
  return HeteroGraph.from_arrays(nodes=nodes, edges=edges, target=target, splits=chosen | splits)


load_freebase = functools.partial(load, "freebase")
load_acm = functools.partial(load, "acm")
load_aminer = functools.partial(load, "aminer")
