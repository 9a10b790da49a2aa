"""Your own graph: a folder of tables, an archive of one, or an .npz file.

A folder holds `graph.json`, one table per node type and one per relation, CSV or Parquet:

  shop/graph.json                   {"target": "item", "label": "kind", "split": "part"}
  shop/nodes/item.csv               id,kind,part,price,colour
  shop/nodes/user.csv               id,age
  shop/edges/user.buys.item.csv     source,target,amount

`id` is unique within its table. On the target type `label` names the column of classes (empty:
unlabelled) and `split`, if there is one, the column that says train, val or test. All other columns
are features: numbers are standardised (empty: missing, with a flag), up to 64 different texts are
one-hot, more are words, hashed. Columns of edges after source and target are numbers, kept as they
are. `graph.json` may also list `"relations": ["user.buys.item"]`, so that no other is accepted, and
`"sha256": {"nodes/item.csv": "..."}`. A .zip or .tar archive holds the same, at its top or in one
folder. An .npz file holds the arrays that `h2g.graph.save_npz` describes, and a graph larger than
memory is a folder that `h2g.data.store` wrote.

Objects in memory need no files: `h2g.graph.from_networkx`, `from_pyg` (HeteroData or dictionaries),
`from_jraph`, or `HeteroGraph.from_arrays`; `h2g.graph.save_npz` keeps them.
"""

from collections.abc import Callable
import contextlib
import io
import json
from pathlib import Path
from pathlib import PurePosixPath
from typing import Any
from typing import NamedTuple

import numpy as np

from h2g.data import encode
from h2g.data import files as shared
from h2g.data import store
from h2g.errors import InputError
from h2g.graph import HeteroGraph
from h2g.graph import io as graph_io

ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.xz", ".tar.bz2")
TABLES = (".csv", ".tsv", ".parquet")
KEYS = {"target", "label", "split", "relations", "sha256"}
PARTS = ("train", "val", "test")
CATEGORIES = 64  # most texts of a column that is one-hot
WORDS = 64  # columns of one that is hashed


class Inspection(NamedTuple):
  """What is found at a path.

  Attributes:
    graph: the graph, None where there are problems.
    problems: one line each, with the file, and the field or row.
  """

  graph: HeteroGraph | None
  problems: tuple[str, ...]


def load(path: str | Path) -> HeteroGraph:
  """The graph at a path.

  Raises:
    InputError: the first problem, and how many more there are.
  """
  path = Path(path).expanduser()
  if store.is_store(path):
    return store.load(path)
  if not (path.is_dir() or path.name.endswith(ARCHIVES)):
    return graph_io.load_npz(path)
  graph, problems = inspect(path)
  if problems:
    more = f" (and {len(problems) - 1} more: python -m h2g.data.check {path})"
    raise InputError(problems[0] + (more if len(problems) > 1 else ""))
  return graph


def inspect(path: str | Path) -> Inspection:
  """Reads a graph and collects everything that is wrong with it."""
  path, problems = Path(path).expanduser(), []
  try:
    if store.is_store(path):
      store.verify(path)
      return Inspection(store.load(path), ())
    if path.is_dir() or path.name.endswith(ARCHIVES):
      parts = _from_folder(_Folder(path), problems.append)
    else:
      wrong = lambda message: problems.append(f"{path}: {message}")
      parts = graph_io.parts_of(graph_io.read_npz(path), wrong)
    if parts is not None:
      _check(parts, lambda message: problems.append(f"{path}: {message}"))
    if not problems:
      return Inspection(HeteroGraph.from_arrays(**parts), ())
  except InputError as error:
    problems.append(str(error))
  return Inspection(None, tuple(dict.fromkeys(problems)))


class _Folder:
  """The files of a folder or of an archive, by their path inside it."""

  def __init__(self, path: Path):
    self.path, self._content = path, None
    if path.is_dir():
      self.names = sorted(
        file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()
      )
    else:
      self._content = shared.read_archive(path)
      tops = {name.partition("/")[0] for name in self._content if not name.startswith("__MACOSX/")}
      if len(tops) == 1 and "graph.json" not in self._content:  # the folder itself was packed
        (top,) = tops
        inside = [name for name in self._content if name.startswith(f"{top}/")]
        self._content = {name[len(top) + 1 :]: self._content[name] for name in inside}
      self.names = sorted(self._content)

  def read(self, name: str) -> bytes:
    if self._content is None:
      return shared.read_bytes(self.path / name)
    return self._content[name]

  def where(self, name: str) -> str:
    return f"{self.path / name}"


def _from_folder(folder: _Folder, wrong: Callable[[str], None]) -> dict[str, Any] | None:
  """The arguments of `HeteroGraph.from_arrays`; None where there is nothing to go on."""
  if "graph.json" not in folder.names:
    wrong(f"{folder.where('graph.json')} is missing: write one, as in {{'target': 'item'}}")
    return None
  config = _config(folder, wrong)
  if config is None:
    return None
  target, labels = str(config["target"]), None
  tables = {"nodes": {}, "edges": {}}
  for name in folder.names:
    place = PurePosixPath(name)
    if len(place.parts) == 2 and place.parts[0] in tables and place.suffix in TABLES:
      if place.stem in tables[place.parts[0]]:
        wrong(f"{folder.where(name)}: {place.stem} has two tables; keep one")
      with _collected(wrong):
        tables[place.parts[0]][place.stem] = (name, _table(folder, name))

  nodes, rows, splits, class_names = {}, {}, {}, None
  for kind, (name, table) in tables["nodes"].items():
    where, own = folder.where(name), {}
    if "id" not in table:
      wrong(f"{where}: column 'id' is missing; there are {', '.join(table)}")
      continue
    rows[kind] = {}
    for at, node in enumerate(table["id"]):
      if rows[kind].setdefault(node, at) != at:
        first = rows[kind][node] + 1
        wrong(f"{where}: node id {node!r} stands twice, in rows {first} and {at + 1}")
    if kind == target:
      own = {name: config[name] for name in ("label", "split") if name in config}
      for what, column in own.items():
        if column not in table:
          wrong(f"{where}: {what} column {column!r} is missing; there are {', '.join(table)}")
      if own.get("label") in table:
        found = table[own["label"]]
        class_names = tuple(sorted(set(found) - {""}))
        places = {value: at for at, value in enumerate(class_names)}
        labels = np.array([places.get(value, -1) for value in found], np.int64)
      if own.get("split") in table:
        splits = _splits(table[own["split"]], f"{where}: column {own['split']!r}", wrong)
    columns = {c: v for c, v in table.items() if c not in ("id", *own.values())}
    blocks = [_encode(f"{where}: column {c!r}", v, wrong) for c, v in columns.items()]
    nodes[kind] = {"num_nodes": len(table["id"])}
    if blocks:
      nodes[kind]["features"] = np.concatenate(blocks, axis=1)
  if target in nodes and labels is not None:
    nodes[target]["labels"] = labels
  edges = {}
  known = config.get("relations")
  for stem, (name, table) in tables["edges"].items():
    found = _edges(stem, folder.where(name), table, rows, known, wrong)
    if found is not None:
      edges[tuple(stem.split("."))] = found
  for stem in known or ():
    if stem not in tables["edges"]:
      wrong(f"{folder.path}: relation {stem!r} of graph.json has no table edges/{stem}.csv")
  if not nodes:
    wrong(f"{folder.path}: no table of nodes, as in nodes/{target}.csv")
    return None
  return {
    "nodes": nodes,
    "edges": edges,
    "target": target,
    "class_names": class_names,
    "splits": splits,
  }


def _config(folder: _Folder, wrong) -> dict[str, Any] | None:
  where = folder.where("graph.json")
  try:
    config = json.loads(shared.decode(folder.read("graph.json"), where))
  except ValueError as error:  # InputError is one
    wrong(str(error) if isinstance(error, InputError) else f"{where} is no JSON: {error}")
    return None
  if not isinstance(config, dict) or not isinstance(config.get("target"), str):
    wrong(f"{where}: key 'target' is missing: the node type that carries the labels")
    return None
  for key in set(config) - KEYS:
    wrong(f"{where}: key {key!r} is not understood; there are {', '.join(sorted(KEYS))}")
  for name, digest in (config.get("sha256") or {}).items():
    if name not in folder.names:
      wrong(f"{folder.where(name)} is missing, but graph.json gives its sha256")
    elif shared.sha256(folder.read(name)) != digest:
      wrong(f"{folder.where(name)}: wrong checksum, not the sha256 that graph.json gives")
  return config


@contextlib.contextmanager
def _collected(wrong):
  try:
    yield
  except InputError as error:
    wrong(str(error))


def _table(folder: _Folder, name: str) -> dict[str, list[str]]:
  """Every column as text, "" where nothing is."""
  content, where = folder.read(name), folder.where(name)
  if not name.endswith(".parquet"):
    delimiter = "\t" if name.endswith(".tsv") else ","
    return shared.parse_table(shared.decode(content, where), path=where, delimiter=delimiter)
  try:
    from pyarrow import parquet
  except ImportError as error:
    raise InputError(f"{where} needs pyarrow to be read: pip install pyarrow, or save CSV") from (
      error
    )
  try:
    columns = parquet.read_table(io.BytesIO(content)).to_pydict()
  except Exception as error:  # pyarrow has errors of its own
    raise InputError(f"{where} is no readable Parquet file ({error})") from error
  text = lambda value: "" if value is None else str(value)
  return {name: [text(value) for value in values] for name, values in columns.items()}


def _encode(where: str, values: list[str], wrong) -> np.ndarray:
  """[N, F] of one column; F is 0 for an empty one."""
  filled = [value for value in values if value.strip()]
  if not all(map(_is_number, filled)):
    if len(set(filled)) <= CATEGORIES:
      return encode.one_hot(values)
    return encode.words(values, WORDS)
  numbers = np.array([float(value) if value.strip() else np.nan for value in values])
  bad = [at for at, value in enumerate(values) if value.strip() and not np.isfinite(numbers[at])]
  if bad:
    wrong(f"{where} is not finite in row {bad[0] + 1}: {values[bad[0]]!r} ({len(bad)} such values)")
    numbers[bad] = np.nan
  return encode.numeric(numbers) if filled else np.zeros((len(values), 0), np.float32)


def _edges(stem: str, where: str, table, rows, known, wrong):
  """(senders, receivers[, features]) or None."""
  name = stem.split(".")
  if len(name) != 3:
    wrong(f"{where}: the file's name must be source.relation.target")
    return None
  if known is not None and stem not in known:
    wrong(f"{where}: unknown relation {stem!r}; graph.json lists {', '.join(known)}")
  ends, sound = [], True
  for column, kind in (("source", name[0]), ("target", name[2])):
    if kind not in rows:
      wrong(f"{where}: unknown node type {kind!r}; there are tables of {', '.join(rows)}")
      sound = False
    elif column not in table:
      wrong(f"{where}: column {column!r} is missing; there are {', '.join(table)}")
      sound = False
    else:
      found = [rows[kind].get(node, -1) for node in table[column]]
      bad = [at for at, row in enumerate(found) if row < 0]
      if bad:
        node = table[column][bad[0]]
        more = f" ({len(bad)} such rows)" if len(bad) > 1 else ""
        wrong(f"{where} row {bad[0] + 1}: {column} {node!r} is no {kind}{more}")
        sound = False
      ends.append(np.array(found, np.int64))
  extra = [column for column in table if column not in ("source", "target")]
  features = []
  for column in extra:
    with _collected(wrong):
      features.append(shared.numbers(table[column], path=where, column=column))
      bad = np.flatnonzero(~np.isfinite(features[-1]))
      if len(bad):
        wrong(f"{where}: column {column!r} is not finite in row {bad[0] + 1}")
        sound = False
  if not sound or len(features) < len(extra):
    return None
  return (*ends, np.stack(features, axis=1)) if features else tuple(ends)


def _splits(values: list[str], where: str, wrong) -> dict[str, np.ndarray]:
  strange = [at for at, value in enumerate(values) if value not in (*PARTS, "")]
  if strange:
    wrong(f"{where}: row {strange[0] + 1} is {values[strange[0]]!r}, not one of {', '.join(PARTS)}")
  return {part: np.array([value == part for value in values], bool) for part in PARTS}


def _check(parts: dict[str, Any], wrong: Callable[[str], None]) -> None:
  """Every part of a graph on its own, so that one mistake does not hide another."""
  nodes, target = parts["nodes"], parts["target"]
  counts = {}
  for kind, fields in nodes.items():
    size = {"num_nodes": fields["num_nodes"]} if "num_nodes" in fields else {}
    for field in ("features", "labels"):
      if fields.get(field) is not None:
        with _collected(wrong):
          names = parts["class_names"] if field == "labels" and kind == target else None
          one = {kind: {**size, field: fields[field]}}
          HeteroGraph.from_arrays(nodes=one, edges={}, target=kind, class_names=names)
    if size:
      with _collected(wrong):
        HeteroGraph.from_arrays(nodes={kind: size}, edges={}, target=kind)
    given = [np.shape(fields[f])[:1] for f in ("features", "labels") if fields.get(f) is not None]
    found = {shape[0] for shape in given if shape} | set(size.values())
    if not found:
      wrong(f"node type {kind!r} has neither features nor labels nor num_nodes")
    if len(found) > 1:
      sizes = {f: len(fields[f]) for f in ("features", "labels") if np.ndim(fields.get(f))} | size
      wrong(
        f"node type {kind!r}: unequal lengths, {', '.join(f'{k} {n}' for k, n in sizes.items())}"
      )
    counts[kind] = {"num_nodes": max((0, *(n for n in found if n < 2**31)))}
  if target and target not in nodes:
    there = f"there are {', '.join(nodes)}" if nodes else "there are no nodes"
    wrong(f"the graph is without its target type {target!r}: {there}")
  elif target and nodes[target].get("labels") is None:
    wrong(f"the target type {target!r} has no labels: give the label column or array")
  elif target and not _any_label(nodes[target]["labels"]):
    wrong(f"no node of the target type {target!r} is labelled")
  if counts:
    for name, given in parts["edges"].items():
      _check_edges(name, given, counts, wrong)
  if target in nodes:
    for split, mask in parts["splits"].items():
      with _collected(wrong):
        HeteroGraph.from_arrays(nodes=counts, edges={}, target=target, splits={split: mask})
    masks = {
      split: np.asarray(parts["splits"][split]) for split in PARTS if split in parts["splits"]
    }
    if {(mask.dtype, mask.ndim) for mask in masks.values()} == {(np.dtype(bool), 1)} and (
      len({len(mask) for mask in masks.values()}) == 1
    ):
      both = np.flatnonzero(np.sum([mask.astype(int) for mask in masks.values()], axis=0) > 1)
      if len(both):
        wrong(f"{target!r} node {both[0]} is in two splits at once ({len(both)} such nodes)")


def _any_label(labels) -> bool:
  """Whether one is not -1; True for what is no array of integers, which is another problem."""
  labels = np.asarray(labels)
  return not np.issubdtype(labels.dtype, np.integer) or bool((labels >= 0).any())


def _check_edges(name, given, counts, wrong) -> None:
  senders, receivers, features = (*given, None)[:3]
  zeros = lambda other: np.zeros(np.shape(other)[:1], np.int64)
  # Each side with node 0 for the other, which exists for this.
  some = lambda end: (
    counts | ({end: {"num_nodes": 1}} if name[0] != name[2] and end in counts else {})
  )
  attempts = [
    (some(name[2]), (senders, zeros(senders))),
    (some(name[0]), (zeros(receivers), receivers)),
    (counts, (senders, receivers)),
  ]
  if features is not None:
    ones = {kind: {"num_nodes": 1} for kind in counts}
    attempts.append((ones, (zeros(senders), zeros(senders), features)))
  found = []
  for nodes, edges in attempts:
    with _collected(found.append):
      HeteroGraph.from_arrays(nodes=nodes, edges={name: edges}, target=next(iter(counts)))
  for message in dict.fromkeys(found):
    wrong(message)


def _is_number(text: str) -> bool:
  try:
    float(text)
  except ValueError:
    return False
  return True
