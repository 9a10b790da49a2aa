"""The brain of a fruit-fly larva: 2,952 neurons joined by synapses of four kinds.

Heterophilic on three of the four kinds, and the kind carries signal. Clusters, additional
annotations and the ratios by cell type betray the label and are never read.

Source: Winding et al., Science 379 (2023), data S1, as in
brain-networks/larval-drosophila-connectome. Licence: none stated.
"""

from pathlib import Path

import numpy as np

from h2g.data import encode
from h2g.data import files as shared
from h2g.data.checksums import SHA256
from h2g.errors import InputError
from h2g.graph import HeteroGraph

ARCHIVE = "Supplementary-Data-S1.zip"
FOLDER = "Supplementary-Data-S1"
KINDS = {"ad": "axon_dendrite", "aa": "axon_axon", "dd": "dendrite_dendrite", "da": "dendrite_axon"}
NO_PAIR = "no pair"


def load(*, files: str | Path | None = None, digests=SHA256["larval-connectome"]) -> HeteroGraph:
  """Neurons, 2,606 of them of one of 17 cell types; four relations, sender to receiver of a signal.

  Node features: log(1 + synapses) in and out, by axon and dendrite, standardised; hemisphere. The
  edge feature is log(1 + number of synapses).

  Args:
    files, digests: as in `imdb_nshe.load`.
  """
  source = shared.Source("larval-connectome", digests, files)
  path, content = source.folder / ARCHIVE, source.read(ARCHIVE)
  member = lambda name: shared.read_member(content, f"{FOLDER}/{name}.csv", path)
  table = lambda name, columns=(): shared.parse_table(
    shared.decode(member(name), path), columns, path=f"{path}:{name}.csv"
  )
  counts = {name: table(name) for name in ("inputs", "outputs")}
  matrices = {kind: member(f"{kind}_connectivity_matrix") for kind in KINDS}
  head = matrices["ad"].partition(b"\n")[0].decode("ascii", "replace").split(",")[1:]
  rows = shared.number(head, path=f"{path}:ad_connectivity_matrix.csv")
  columns = []
  for name, found in counts.items():  # of a few neurons more than the matrices have
    shared.number(found[""], path=f"{path}:{name}.csv")
    inside = [at for at, neuron in enumerate(found[""]) if neuron in rows]
    at = np.array([rows[found[""][k]] for k in inside], np.int64)
    for compartment in ("axon", "dendrite"):
      column = np.full(len(rows), np.nan)
      key = f"{compartment}_{name.removesuffix('s')}"
      if key not in found:
        raise InputError(f"{path}:{name}.csv: column {key!r} is missing")
      column[at] = shared.numbers(found[key], path=f"{path}:{name}.csv", column=key)[inside]
      columns.append(column)

  notes = table("annotations", ("left_id", "right_id", "celltype"))
  names = tuple(sorted(set(notes["celltype"])))
  labels = np.full(len(rows), -1)
  side = [""] * len(rows)
  for column in ("left_id", "right_id"):
    for neuron, kind in zip(notes[column], notes["celltype"]):
      if neuron != NO_PAIR and neuron in rows:  # some annotated neurons are not in the matrices
        labels[rows[neuron]] = names.index(kind)
        side[rows[neuron]] = column
  edges = {}
  for kind, relation in KINDS.items():
    name = f"{path}:{kind}_connectivity_matrix.csv"
    edges["neuron", relation, "neuron"] = _synapses(matrices[kind], name, rows)
  return HeteroGraph.from_arrays(
    nodes={
      "neuron": {
        "features": np.concatenate(
          [encode.numeric(*columns, log=True), encode.one_hot(side, ("left_id", "right_id"))],
          axis=1,
        ),
        "labels": labels,
      }
    },
    edges=edges,
    target="neuron",
    class_names=names,
  )


def _synapses(content: bytes, path, rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(senders, receivers, log(1 + count)) of a dense matrix, nearly all of whose cells are zero.

  Only cells that are not plainly 0 or 0.0 are parsed: six times faster than reading every number.
  """
  head, _, body = content.partition(b"\n")
  columns = head.decode("ascii", "replace").split(",")[1:]
  body = body.rstrip(b"\n") + b"\n"
  text = np.frombuffer(body, np.uint8)
  stops = np.flatnonzero((text == ord(",")) | (text == ord("\n")))
  width = len(columns) + 1
  lines = np.flatnonzero(text[stops] == ord("\n"))
  if len(stops) % width or not np.array_equal(lines, np.arange(width - 1, len(stops), width)):
    raise InputError(f"{path} is no matrix of {len(columns)} columns: it is truncated or changed")
  begins = np.append(0, stops[:-1] + 1)
  length = stops - begins
  zero = (text[begins] == ord("0")) & ((length == 1) | ((length == 3) & (text[stops - 1] == 48)))
  zero[::width] = True
  cells = np.flatnonzero(~zero)
  values = [body[a:b].decode("ascii", "replace") for a, b in zip(begins[cells], stops[cells])]
  weight = shared.numbers(values, path=path, column="count")
  owners = [body[a:b].decode("ascii", "replace") for a, b in zip(begins[::width], stops[::width])]
  ids = lambda found, what: shared.lookup(rows, found, path=path, column=what, what="neuron")
  senders = ids(owners, "row")[cells // width]
  receivers = ids(columns, "column")[cells % width - 1]
  there = weight > 0
  return senders[there], receivers[there], np.log1p(weight[there])
