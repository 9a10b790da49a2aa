"""C. elegans: the wiring of a whole animal, heterogeneous and heterophilic. Embedded in the
package.

302 neurons, 95 body-wall muscles, 31 cells of the pharynx, 22 others, joined by chemical synapses,
gap junctions (electrical), and the extrasynaptic reach of monoamines and neuropeptides; a fifth
node type holds the receptors and peptides that neurons express.

Sources: Cook et al., Nature 571 (2019); Bentley et al., PLoS Comput. Biol. 12 (2016). Licence:
MIT, see `celegans_files/NOTICE.md`.
"""

from collections import defaultdict
import csv
import hashlib
import json
from pathlib import Path
import re

import numpy as np

from h2g.errors import InputError
from h2g.graph import HeteroGraph

FILES = Path(__file__).parent / "celegans_files"
SHA256 = {
  "Bentley_et_al_2016_expression.csv": "3197c240a4df32107b01f670c62d12642242c4555cfca19cb4b6979127bb517d",  # noqa: E501
  "edgelist_MA.csv": "5a206a6743479f4ae11eb82456378051c5d9aeb56ea5c1f82b121671c7fa2aa3",
  "edgelist_NP.csv": "bec5f0c9526db1523ed73fb6a8b386de95d48a2fd5eae75a9a4889758102389b",
  "herm_full_edgelist.csv": "142693f17556148d7f962835b18ac6dd5af18b7467eef61815ebc1dd5474c0ca",
  "owmeta_cache.json": "064374a0fba18a6f0661a005032144ce91f46973722e1f07bccabaf2f56e6ed0",
}
ROLES = ("sensory", "interneuron", "motor")
LABELS = {
  "role": (*ROLES, "several"),
  "transmitter": ("acetylcholine", "glutamate", "GABA", "monoamine or other"),
}
MOLECULES = ("nodes", "features", "none")
CELLS = ("neuron", "muscle", "pharynx", "other")
# Muscles of the pharynx and marginal cells; no label or feature is ever derived from a cell's name.
PHARYNX = re.compile(r"(pm|mc)\d")


def load(
  label: str = "role", *, molecules: str = "nodes", strict: bool = True, files: Path = FILES
) -> HeteroGraph:
  """The worm as a HeteroGraph; `neuron` carries the labels.

  Node types: neuron, muscle, pharynx, other (and molecule). Relations, one edge type for each pair
  of cell types that they join: chemical, electrical (weight: number of synapses), monoamine,
  peptide (weight: number of transmitter-receptor pairs), and expresses (neuron to molecule, weight
  1). The edge feature is log(1 + weight). Electrical edges are listed in both directions by the
  source.

  Args:
    label: "role" (sensory, interneuron, motor, several; 300 of 302 neurons) or "transmitter"
      (acetylcholine, glutamate, GABA, monoamine or other; 243).
    molecules: receptors and peptides that a neuron expresses as "nodes" of a type of their own, as
      "features" of the neuron, or "none".
    strict: for `transmitter`, leave out the monoamine relation, which names who releases what. (The
      table's Neurotransmitter rows, which hold the label itself, are never read.)
    files: folder of the original tables.
  Returns:
    HeteroGraph without reverses or splits. Neuron features: for `role` the transmitters
    (multi-hot), for `transmitter` the roles (multi-hot), then the molecules where they are
    features. Other cells are featureless; a molecule's features say receptor or peptide.
  Raises:
    InputError: unknown option; a file is missing or its content has changed.
  """
  for name, value, known in (("label", label, LABELS), ("molecules", molecules, MOLECULES)):
    if value not in known:
      raise InputError(f"celegans has no {name}={value!r}: choose from {', '.join(known)}")
  tables = {name: _read(files / name, digest) for name, digest in SHA256.items()}
  neurons = json.loads(tables["owmeta_cache.json"])["neuron_info"]
  wiring = _rows(tables["herm_full_edgelist.csv"])[1:]
  cells = _cells(neurons, wiring)

  weights = defaultdict(float)
  for source, target, weight, kind in wiring:
    weights[kind, _name(source), _name(target)] += float(weight)
  for kind, file in (("monoamine", "edgelist_MA.csv"), ("peptide", "edgelist_NP.csv")):
    if kind == "monoamine" and label == "transmitter" and strict:
      continue
    for source, target, *_ in _rows(tables[file]):
      weights[kind, _name(source), _name(target)] += 1.0

  # What each neuron is and expresses. The cache's free text and colour encode the role: not read.
  order = cells["neuron"]
  roles = [set(neurons[name][1]) for name in order]
  transmitters = [set(neurons[name][3]) for name in order]
  expressed = _expression(neurons, tables["Bentley_et_al_2016_expression.csv"])
  nodes = {kind: {"num_nodes": len(names)} for kind, names in cells.items()}
  if label == "role":
    labels = [_role(role) for role in roles]
    features = _multi_hot(transmitters, sorted(set().union(*transmitters)))
  else:
    labels = [_transmitter(names) for names in transmitters]
    features = _multi_hot(roles, ROLES)
  kinds = sorted({molecule for found in expressed.values() for molecule in found})
  if molecules == "features":
    features = np.concatenate([features, _multi_hot([expressed[n] for n in order], kinds)], axis=1)
  nodes["neuron"] = {"features": features, "labels": np.array(labels)}

  place = {name: (kind, i) for kind, names in cells.items() for i, name in enumerate(names)}
  edges = defaultdict(list)
  for (kind, source, target), weight in weights.items():
    (source_type, u), (target_type, v) = place[source], place[target]
    edges[source_type, kind, target_type].append((u, v, weight))
  if molecules == "nodes":
    at = {molecule: i for i, molecule in enumerate(kinds)}
    nodes["molecule"] = {
      "features": _multi_hot([{kind} for kind, _ in kinds], ("Receptor", "Neuropeptide"))
    }
    edges["neuron", "expresses", "molecule"] = [
      (i, at[molecule], 1.0) for i, name in enumerate(order) for molecule in sorted(expressed[name])
    ]
  arrays = {}
  for name, found in sorted(edges.items()):
    senders, receivers, weight = zip(*found)
    arrays[name] = (np.array(senders), np.array(receivers), np.log1p(np.array(weight)))
  return HeteroGraph.from_arrays(
    nodes=nodes, edges=arrays, target="neuron", class_names=LABELS[label]
  )


def _read(path: Path, digest: str) -> str:
  try:
    content = path.read_bytes()
  except OSError as error:
    raise InputError(f"{path} cannot be read ({error.strerror}): install h2g again") from error
  if hashlib.sha256(content).hexdigest() != digest:
    raise InputError(f"{path} is not the original file (its sha256 differs): install h2g again")
  return content.decode("utf-8")


def _rows(text: str) -> list[list[str]]:
  return [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if row]


def _name(cell: str) -> str:
  """The wiring table writes AS01 for what the others call AS1."""
  return re.sub(r"^([A-Z]{2})0(\d)$", r"\1\2", cell)


def _cells(neurons, wiring) -> dict[str, list[str]]:
  """{type: sorted names} of all neurons and of the cells that the wiring reaches."""
  cells = {kind: [] for kind in CELLS}
  cells["neuron"] = sorted(neurons)
  wired = {_name(cell) for row in wiring for cell in row[:2]}
  for name in sorted(wired - set(neurons)):
    kind = "muscle" if "BWM" in name else "pharynx" if PHARYNX.match(name) else "other"
    cells[kind].append(name)
  return cells


def _expression(neurons, text: str) -> dict[str, set[tuple[str, str]]]:
  """{neuron: {(kind, molecule)}} of receptors and peptides, joined from both tables."""
  expressed = {name: {("Receptor", r.upper()) for r in info[2]} for name, info in neurons.items()}
  for cell, kind, molecule, *_ in _rows(text)[1:]:
    if kind in ("Receptor", "Neuropeptide") and _name(cell) in expressed:
      expressed[_name(cell)].add((kind, molecule.upper()))
  return expressed


def _multi_hot(sets, names) -> np.ndarray:
  return np.array([[float(name in found) for name in names] for found in sets], np.float32)


def _role(roles: set[str]) -> int:
  """Index into LABELS["role"]; -1 for the two neurons of unknown role."""
  known = roles & set(ROLES)
  if len(known) == 1:
    return ROLES.index(next(iter(known)))
  return len(ROLES) if known else -1


def _transmitter(names: set[str]) -> int:
  """Index into LABELS["transmitter"]: the fast transmitter where there is one; -1 without any."""
  for index, name in enumerate(("Acetylcholine", "Glutamate", "GABA")):
    if name in names:
      return index
  return 3 if names else -1
