"""Graphs larger than memory: a folder of .npy files and a manifest, opened by memory mapping.

  rcdd.store/graph.json           types, relations, classes; of every file dtype, shape and sha256
  rcdd.store/node0.features.npy   [N_t, F] float32
  rcdd.store/edge0.senders.npy    [E_r] int32, and the other arrays of an `EdgeSet`

`load` opens one as a HeteroGraph whose arrays are maps of the files: it reads the manifest and what
is small, so that it takes seconds whatever the size, and samplers touch only the rows they gather.
`writing` builds one chunk by chunk: features go straight to their file; edges go to a file as they
come and are then sorted by receiver and sender in windows of `memory` bytes, each one pass over
that file. So the largest graph is built in about `memory` and a few bytes per node. It is written
into a hidden folder that takes its name at the very end: there is a whole store or none.

Edges are in the order (receiver, sender). Two .npy files may be one: the reverse of a relation
shares its row pointers.
"""

from collections.abc import Iterator
import contextlib
import hashlib
import json
import math
import os
from pathlib import Path
import shutil
import tempfile
from typing import Any

import numpy as np

from h2g.data.files import DAMAGED
from h2g.errors import InputError
from h2g.graph import HeteroGraph
from h2g.graph.graph import EdgeSet
from h2g.graph.graph import EdgeType
from h2g.graph.graph import NodeSet
from h2g.graph.graph import Schema

FORMAT, VERSION = "h2g-store", 1
MANIFEST = "graph.json"
HEADER = 128  # bytes before the array in every file: written last, so of one length for all shapes
CHUNK = 1 << 22  # edges or values read at a time
ARRAYS = ("senders", "receivers", "indptr", "sender_indptr", "sender_order")
INT32 = 2**31


def is_store(path: str | Path) -> bool:
  """Whether a path is a folder that `writing` wrote."""
  try:
    return json.loads((Path(path) / MANIFEST).read_bytes()).get("format") == FORMAT
  except (OSError, ValueError, AttributeError):
    return False


# Reading.


def load(path: str | Path) -> HeteroGraph:
  """Opens a store; its arrays are read-only maps of the files.

  Raises:
    InputError: the manifest or a file is missing, truncated, or of another dtype or shape. What
      the arrays hold is compared with the checksums by `verify` only.
  """
  path, manifest = Path(path), _manifest(Path(path))
  opened = {name: _map(path, name, manifest["arrays"]) for name in manifest["arrays"]}
  try:
    return _graph(manifest, opened)
  except InputError as error:
    raise InputError(f"{path / MANIFEST}: {error}") from error
  except DAMAGED as error:
    raise InputError(
      f"{path / MANIFEST} does not describe a graph ({error!r}): build the store again"
    ) from error


def extra(path: str | Path, name: str) -> np.ndarray:
  """An array that was kept beside the graph, see `Builder.extra`."""
  path, manifest = Path(path), _manifest(Path(path))
  if name not in manifest["extras"]:
    known = ", ".join(manifest["extras"]) or "none"
    raise InputError(f"{path} keeps no array {name!r}: there are {known}")
  return _map(path, manifest["extras"][name], manifest["arrays"])


def verify(path: str | Path) -> None:
  """Reads every file whole; InputError for the first whose checksum or indices are wrong."""
  path, manifest = Path(path), _manifest(Path(path))
  graph = load(path)
  for name, facts in manifest["arrays"].items():
    array, digest = _map(path, name, manifest["arrays"]).reshape(-1), hashlib.sha256()
    for begin in range(0, len(array), CHUNK):
      digest.update(array[begin : begin + CHUNK])
    if digest.hexdigest() != facts["sha256"]:
      raise InputError(f"{path / name}: wrong checksum; it was changed, build the store again")
  for name, edges in graph.edges.items():
    bounds = (
      ("senders", graph.num_nodes[name[0]]),
      ("receivers", graph.num_nodes[name[2]]),
      ("sender_order", len(edges.senders)),
    )
    for field, bound in bounds:
      array = getattr(edges, field)
      for begin in range(0, len(array), CHUNK):
        part = array[begin : begin + CHUNK]
        if part.min() < 0 or part.max() >= bound:
          raise InputError(f"{path}: {field} of {name} are outside 0..{bound - 1}")


def _manifest(path: Path) -> dict[str, Any]:
  place = path / MANIFEST
  try:
    manifest = json.loads(place.read_bytes())
  except FileNotFoundError as error:
    raise InputError(f"{place} does not exist: give the folder of a store") from error
  except (OSError, ValueError) as error:
    raise InputError(f"{place} cannot be read ({error}): build the store again") from error
  if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
    raise InputError(f"{place} is no manifest of a store ({FORMAT})")
  if manifest.get("version") != VERSION:
    raise InputError(
      f"{place} has version {manifest.get('version')!r}, this h2g reads {VERSION}: build it again"
    )
  for key, kind in (("arrays", dict), ("extras", dict), ("nodes", list), ("edges", list)):
    if not isinstance(manifest.get(key), kind):
      raise InputError(f"{place}: key {key!r} is missing: build the store again")
  for name in manifest["arrays"]:
    if name != Path(name).name or not name.endswith(".npy"):
      raise InputError(f"{place} names a file {name!r} outside of its folder; do not use it")
  return manifest


def _map(path: Path, name: str, arrays: dict[str, Any]) -> np.ndarray:
  place = path / name
  if name not in arrays:
    raise InputError(f"{path / MANIFEST} does not describe {name!r}: build the store again")
  try:
    dtype, shape = np.dtype(arrays[name]["dtype"]), tuple(map(int, arrays[name]["shape"]))
    count = math.prod(shape)
    size = os.path.getsize(place)
    if size != HEADER + count * dtype.itemsize:
      raise InputError(
        f"{place} has {size} bytes, {HEADER + count * dtype.itemsize} are expected: it is "
        "truncated, build the store again"
      )
    with open(place, "rb") as file:
      if file.read(HEADER) != _header(dtype, shape):
        raise InputError(f"{place} is not {dtype}{list(shape)}, as {MANIFEST} says")
    if not count:
      return np.zeros(shape, dtype)
    # A plain array: the subclass of np.memmap would be carried along by every operation.
    return np.asarray(np.memmap(place, dtype, "r", HEADER, shape))
  except InputError:
    raise
  except FileNotFoundError as error:
    raise InputError(f"{place} is missing: build the store again") from error
  except DAMAGED as error:
    raise InputError(f"{place} cannot be read ({error}): build the store again") from error


def _graph(manifest: dict[str, Any], arrays: dict[str, np.ndarray]) -> HeteroGraph:
  target, nodes, edges = manifest["target"], {}, {}
  for one in manifest["nodes"]:
    count, features = int(one["num_nodes"]), arrays.get(one["features"])
    labels = arrays[one["labels"]] if one["labels"] else None
    for what, array in (("features", features), ("labels", labels)):
      if array is not None and len(array) != count:
        raise InputError(f"{what} of {one['name']!r} have {len(array)} rows, not {count}")
    mask = np.ones(count, bool)
    nodes[one["name"]] = NodeSet(np.arange(count, dtype=np.int32), mask, features, labels)
  if target not in nodes or nodes[target].labels is None:
    raise InputError(f"target type {target!r} is not there, or has no labels")
  names = tuple(map(str, manifest["class_names"]))
  labels = nodes[target].labels
  if len(labels) and (labels.min() < -1 or labels.max() >= len(names)):
    raise InputError(f"labels of {target!r} are outside the {len(names)} classes")
  for one in manifest["edges"]:
    name = (source, _, receiver) = tuple(map(str, one["name"]))
    found = {field: arrays[one[field]] for field in ARRAYS}
    count = len(found["senders"])
    ends = {"indptr": len(nodes[receiver].ids), "sender_indptr": len(nodes[source].ids)}
    for field, array in found.items():
      size = ends[field] + 1 if field in ends else count
      if array.dtype != np.int32 or array.shape != (size,):
        raise InputError(f"{field} of {name} are {array.dtype}{list(array.shape)}, not [{size}]")
      if field in ends and (array[0] != 0 or array[-1] != count):
        raise InputError(f"{field} of {name} do not count its {count} edges")
    features = arrays[one["features"]] if one["features"] else None
    edges[name] = EdgeSet(**found, features=features)
  schema = Schema(
    node_types=tuple(nodes),
    edge_types=tuple(edges),
    target=target,
    num_classes=len(names),
    feature_dims=tuple(_width(one.features) for one in nodes.values()),
    edge_feature_dims=tuple(_width(one.features) for one in edges.values()),
    class_names=names,
  )
  graph = HeteroGraph(nodes, edges, {}, None, schema)
  return graph.with_splits({name: arrays[file] for name, file in manifest["splits"].items()})


def _width(features) -> int:
  return 0 if features is None else int(features.shape[1])


# Writing.


def save(graph: HeteroGraph, path: str | Path, **options) -> None:
  """Writes a graph that is in memory; `options` as of `writing`. Padding must not be there."""
  names, target = graph.schema.class_names, graph.schema.target
  with writing(path, target=target, class_names=names, **options) as out:
    for name in graph.schema.node_types:
      nodes = graph.nodes[name]
      out.num_nodes(name, len(nodes.ids))
      if nodes.features is not None:
        out.features(name, nodes.features)
    out.labels(np.asarray(graph.target_labels))
    for name in graph.schema.edge_types:
      edges = graph.edges[name]
      out.edges(name, edges.senders, edges.receivers, edges.features)
    for name, mask in graph.splits.items():
      out.split(name, mask)


@contextlib.contextmanager
def writing(
  path: str | Path,
  *,
  target: str,
  class_names: tuple[str, ...] | None = None,
  reverses: bool = False,
  memory: int = 1 << 30,
  facts: dict[str, Any] | None = None,
) -> Iterator["Builder"]:
  """`with writing(path, target="item") as out:` fills a Builder; the store is there afterwards.

  Args:
    path: folder, which must not exist yet.
    target: node type that carries the labels.
    class_names: by default "0", "1", ... up to the largest label.
    reverses: add (target, "rev_" + relation, source) for every relation that is not symmetric.
    memory: bytes for the sorting of edges.
    facts: kept in the manifest: where the data came from.
  Raises:
    InputError: what was given is no graph, or cannot be written. Then nothing is left.
  """
  path = Path(path)
  if path.exists():
    raise InputError(f"{path} exists already: remove it, or write the store to another folder")
  partial = None
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    builder = Builder(partial, target, class_names, reverses, memory, facts or {})
    try:
      yield builder
      builder._finish()
    finally:
      builder._close()
    partial.chmod(0o755)
    os.replace(partial, path)
  except OSError as error:
    raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
  finally:
    if partial is not None:
      shutil.rmtree(partial, ignore_errors=True)


class Builder:
  """Takes the parts of a graph in any order, chunk by chunk; made by `writing`.

  Every method raises InputError for what cannot be part of a graph.
  """

  def __init__(self, folder, target, class_names, reverses, memory, facts):
    self._folder, self._target, self._class_names = folder, target, class_names
    self._reverses, self._facts = reverses, facts
    self._limit = max(1, memory // 24)  # edges in a window: their key and what is made from it
    self._counts, self._features, self._labels = {}, {}, None
    self._raw, self._splits, self._extras, self._arrays = {}, {}, {}, {}

  def num_nodes(self, name: str, count: int) -> None:
    """Declares a node type; not needed for one with features."""
    if not 0 <= count < INT32:
      raise InputError(f"num_nodes of node type {name!r} is {count}: rows are 32-bit")
    if self._counts.setdefault(name, int(count)) != count:
      raise InputError(f"node type {name!r} has {self._counts[name]} nodes, and {count}")

  def features(self, name: str, rows) -> None:
    """Appends rows [n, F] of features to a node type, whose nodes are in this order."""
    rows = np.asarray(rows)
    if rows.ndim != 2 or rows.dtype.kind not in "fiub":
      raise InputError(
        f"features of node type {name!r} are {rows.dtype}{list(rows.shape)}: give float [n, F]"
      )
    if not rows.shape[1]:
      raise InputError(f"features of node type {name!r} have no columns: give num_nodes alone")
    if name not in self._features:
      self._features[name] = self._writer("node.features", np.float32, rows.shape[1])
    writer = self._features[name]
    if rows.shape[1] != writer.width:
      raise InputError(
        f"features of node type {name!r}: row {writer.count} has {rows.shape[1]} columns, "
        f"{writer.width} are expected"
      )
    for begin in range(0, len(rows), max(1, CHUNK // writer.width)):
      with np.errstate(over="ignore"):
        part = rows[begin : begin + max(1, CHUNK // writer.width)].astype(np.float32)
      if not np.isfinite(part).all():
        row, column = np.argwhere(~np.isfinite(part))[0]
        raise InputError(
          f"features of node type {name!r} are not finite: row {writer.count + row}, column "
          f"{column} is {part[row, column]}; replace or drop them"
        )
      writer.append(part)

  def read_features(self, name: str) -> np.ndarray:
    """[n, F] map of what was appended so far, for features made from others."""
    return self._features[name].read()

  def labels(self, labels) -> None:
    """[N_target] integers, -1 unlabelled."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
      raise InputError(
        f"labels of {self._target!r} are {labels.dtype}{list(labels.shape)}: give integers"
      )
    if len(labels) and (labels.min() < -1 or labels.max() >= INT32):
      raise InputError(
        f"labels of {self._target!r} must be -1 (unlabelled) or 32-bit numbers from 0"
      )
    self._labels = labels.astype(np.int32)

  def split(self, name: str, mask) -> None:
    """[N_target] bool."""
    self._splits[name] = np.asarray(mask)

  def extra(self, name: str, array) -> None:
    """Any plain array to keep beside the graph, see `extra`."""
    array = np.ascontiguousarray(array)
    if array.dtype.kind not in "fiub":
      raise InputError(f"extra array {name!r} is {array.dtype}: give numbers")
    self._extras[name] = self._store("extra", array)

  def edges(self, name: EdgeType, senders, receivers, features=None) -> None:
    """Appends edges: integers [n] each, and features [n, F] where the relation has them."""
    self._relation(name, symmetric=False).append(senders, receivers, features)

  def symmetric_edges(self, name: EdgeType, senders, receivers) -> None:
    """Appends edges to a relation that holds both directions of each, and each once."""
    raw = self._relation(name, symmetric=True)
    if name[0] != name[2]:
      raise InputError(f"edge type {name} cannot be symmetric: its ends are of two types")
    raw.append(senders, receivers, None)
    raw.append(receivers, senders, None)

  def _relation(self, name, symmetric: bool) -> "_Raw":
    if not (isinstance(name, tuple) and len(name) == 3 and all(isinstance(p, str) for p in name)):
      raise InputError(f"edge type {name!r} must be (source, relation, target)")
    if name not in self._raw:
      self._raw[name] = _Raw(self._folder / f"raw{len(self._raw)}", name, symmetric)
    if self._raw[name].symmetric != symmetric:
      raise InputError(f"edge type {name} was symmetric in one call and not in another")
    return self._raw[name]

  # The end.

  def _writer(self, kind: str, dtype, width: int | None = None) -> "_Writer":
    name = (
      kind.replace(".", f"{len(self._arrays)}.") if "." in kind else f"{kind}{len(self._arrays)}"
    )
    self._arrays[f"{name}.npy"] = writer = _Writer(self._folder / f"{name}.npy", dtype, width)
    return writer

  def _store(self, kind: str, array: np.ndarray) -> str:
    writer = self._writer(kind, array.dtype, array.shape[1] if array.ndim == 2 else None)
    if array.ndim not in (1, 2):
      raise InputError(f"{kind} has shape {list(array.shape)}: give one or two axes")
    writer.append(array)
    return writer.path.name

  def _close(self) -> None:
    for writer in (*self._arrays.values(), *self._raw.values()):
      writer.close()

  def _finish(self) -> None:
    for name, writer in self._features.items():
      self.num_nodes(name, writer.count)
    target, labels = self._target, self._labels
    if target not in self._counts:
      raise InputError(
        f"the graph is without its target type {target!r}: it has {', '.join(self._counts)}"
      )
    if labels is None:
      raise InputError(f"the target type {target!r} has no labels")
    if len(labels) != self._counts[target]:
      raise InputError(f"{target!r} has {self._counts[target]} nodes and {len(labels)} labels")
    if not (labels >= 0).any():
      raise InputError(f"no node of the target type {target!r} is labelled")
    names = self._class_names or tuple(str(c) for c in range(int(labels.max()) + 1))
    if labels.max() >= len(names):
      raise InputError(f"label {labels.max()} is outside the {len(names)} classes of {target!r}")
    for name, mask in self._splits.items():
      if mask.dtype != bool or mask.shape != labels.shape:
        raise InputError(f"split {name!r} is {mask.dtype}{list(mask.shape)}: give bool[N_target]")
    edges = {}
    for name, raw in self._raw.items():
      self._sort(name, raw, edges)
      raw.remove()
    place = list(self._counts).index  # few runs of one source type, as `with_reverses` makes them
    order = sorted(edges, key=lambda e: e not in self._raw)
    order = sorted(order, key=lambda e: place(e[0])) if self._reverses else order
    manifest = {
      "format": FORMAT,
      "version": VERSION,
      "target": target,
      "class_names": list(names),
      "nodes": [
        {
          "name": name,
          "num_nodes": count,
          "features": self._features[name].path.name if name in self._features else None,
          "labels": self._store("node.labels", labels) if name == target else None,
        }
        for name, count in self._counts.items()
      ],
      "edges": [{"name": list(name), **edges[name]} for name in order],
      "splits": {name: self._store("split", mask) for name, mask in self._splits.items()},
      "extras": self._extras,
      "facts": self._facts,
    }
    self._close()
    manifest["arrays"] = {name: writer.facts for name, writer in self._arrays.items()}
    with open(self._folder / MANIFEST, "w") as file:
      json.dump(manifest, file, indent=1)
      file.flush()
      os.fsync(file.fileno())

  def _sort(self, name: EdgeType, raw: "_Raw", edges: dict) -> None:
    """The five arrays of a relation, and of its reverse, from the edges as they came."""
    for end in (name[0], name[2]):
      if end not in self._counts:
        raise InputError(
          f"edge type {name} names node type {end!r}; the graph has {', '.join(self._counts)}"
        )
    num_senders, num_receivers = self._counts[name[0]], self._counts[name[2]]
    raw.check(num_senders, num_receivers)
    writers = {field: self._writer(f"edge.{field}", np.int32) for field in ARRAYS}
    features = raw.features and self._writer("edge.features", np.float32, raw.features.width)
    degree = np.zeros(num_receivers, np.int64)
    for _, receivers in raw.chunks():
      _count(degree, receivers)
    kept = np.zeros(num_receivers, np.int64)
    for begin, end in _windows(degree, self._limit):
      filled, keys = 0, np.empty(int(degree[begin:end].sum()), np.int64)
      places = np.empty(len(keys), np.int64) if features else None
      for at, (senders, receivers) in raw.chunks(numbered=True):
        inside = np.flatnonzero((receivers >= begin) & (receivers < end))
        part = keys[filled : filled + len(inside)]
        np.left_shift(receivers[inside], 32, out=part, dtype=np.int64, casting="unsafe")
        part |= senders[inside]
        if features:
          places[filled : filled + len(inside)] = inside + at
        filled += len(inside)
      if features:
        order = np.argsort(keys, kind="stable")
        keys, places = keys[order], places[order]
        given = raw.features.read()
        for start in range(0, len(places), CHUNK):
          features.append(given[places[start : start + CHUNK]])
      else:
        keys.sort()
      if raw.symmetric and len(keys):
        fresh = np.empty(len(keys), bool)
        fresh[0] = True
        np.not_equal(keys[1:], keys[:-1], out=fresh[1:])
        keys = keys[fresh]
      for start in range(0, len(keys), CHUNK):
        part = keys[start : start + CHUNK]
        receivers = (part >> 32).astype(np.int32)
        writers["senders"].append((part & 0xFFFFFFFF).astype(np.int32))
        writers["receivers"].append(receivers)
        _count(kept, receivers)
    raw.remove()
    del degree
    _append_indptr(writers["indptr"], kept)

    # The same edges in the order (sender, receiver), which is the order of the reverse.
    reverse = None
    if self._reverses and not raw.symmetric:
      reverse = (name[2], f"rev_{name[1]}", name[0])
      if reverse in self._raw or reverse in edges:
        raise InputError(f"edge type {reverse} is there already: build without reverses")
      flipped = {f: self._writer(f"edge.{f}", np.int32) for f in ("senders", "receivers")}
      inverse = self._writer("edge.sender_order", np.int32)
    senders, receivers = writers["senders"].read(), writers["receivers"].read()
    degree = np.zeros(num_senders, np.int64)
    for start in range(0, len(senders), CHUNK):
      _count(degree, senders[start : start + CHUNK])
    for begin, end in _windows(degree, self._limit):
      filled, keys = 0, np.empty(int(degree[begin:end].sum()), np.int64)
      for start in range(0, len(senders), CHUNK):
        chunk = senders[start : start + CHUNK]
        inside = np.flatnonzero((chunk >= begin) & (chunk < end))
        part = keys[filled : filled + len(inside)]
        np.left_shift(chunk[inside], 32, out=part, dtype=np.int64, casting="unsafe")
        part |= inside + start
        filled += len(inside)
      keys.sort()
      for start in range(0, len(keys), CHUNK):
        part = keys[start : start + CHUNK]
        order = (part & 0xFFFFFFFF).astype(np.int32)
        writers["sender_order"].append(order)
        if reverse:
          flipped["senders"].append(receivers[order])
          flipped["receivers"].append((part >> 32).astype(np.int32))
    _append_indptr(writers["sender_indptr"], degree)
    files = {field: writer.path.name for field, writer in writers.items()}
    edges[name] = files | {"features": features.path.name if features else None}
    if not reverse:
      return
    order = writers["sender_order"].read()
    for begin in range(0, len(order), self._limit):
      found = np.empty(min(self._limit, len(order) - begin), np.int32)
      for start in range(0, len(order), CHUNK):
        chunk = order[start : start + CHUNK]
        inside = np.flatnonzero((chunk >= begin) & (chunk < begin + len(found)))
        found[chunk[inside] - begin] = inside + start
      inverse.append(found)
    edges[reverse] = {
      "senders": flipped["senders"].path.name,
      "receivers": flipped["receivers"].path.name,
      "indptr": files["sender_indptr"],
      "sender_indptr": files["indptr"],
      "sender_order": inverse.path.name,
      "features": None,
    }
    if features:
      again = self._writer("edge.features", np.float32, features.width)
      for start in range(0, len(order), CHUNK):
        again.append(features.read()[order[start : start + CHUNK]])
      edges[reverse]["features"] = again.path.name


class _Writer:
  """An .npy file written from front to back, with its sha256 (of the array, not the header)."""

  def __init__(self, path: Path, dtype, width: int | None = None):
    self.path, self.dtype, self.width, self.count = path, np.dtype(dtype), width, 0
    self._file, self._digest, self.facts = open(path, "wb"), hashlib.sha256(), {}  # noqa: SIM115
    self._file.write(bytes(HEADER))

  def append(self, rows: np.ndarray) -> None:
    rows = np.ascontiguousarray(rows, self.dtype)
    if rows.size:
      self._file.write(rows.data)
      self._digest.update(rows.data)
    self.count += len(rows)

  @property
  def shape(self) -> tuple[int, ...]:
    return (self.count,) if self.width is None else (self.count, self.width)

  def read(self) -> np.ndarray:
    self._file.flush()
    if 0 in self.shape:
      return np.zeros(self.shape, self.dtype)
    return np.asarray(np.memmap(self.path, self.dtype, "r", HEADER, self.shape))

  def close(self) -> None:
    if self._file.closed:
      return
    self._file.seek(0)
    self._file.write(_header(self.dtype, self.shape))
    self._file.close()
    facts = {"dtype": self.dtype.str, "shape": list(self.shape)}
    self.facts = facts | {"sha256": self._digest.hexdigest()}


class _Raw:
  """Edges of one relation in the order they came: two files of int32, and features."""

  def __init__(self, path: Path, name: EdgeType, symmetric: bool):
    self.name, self.symmetric, self.count, self.features = name, symmetric, 0, None
    self._places = path.with_suffix(".senders"), path.with_suffix(".receivers")
    self._files = [open(place, "wb") for place in self._places]  # noqa: SIM115
    self._most = [-1, -1]

  def append(self, senders, receivers, features) -> None:
    ends = [np.asarray(senders), np.asarray(receivers)]
    for side, ids in zip(("senders", "receivers"), ends):
      if ids.ndim != 1 or (ids.dtype.kind not in "iu" and ids.size):
        raise InputError(f"{side} of {self.name} are {ids.dtype}{list(ids.shape)}: give integers")
    if len(ends[0]) != len(ends[1]):
      raise InputError(f"edges of {self.name}: {len(ends[0])} senders and {len(ends[1])} receivers")
    if self.count + len(ends[0]) >= INT32:
      raise InputError(f"edges of {self.name} are {INT32} or more: their places are 32-bit")
    for k, (ids, file) in enumerate(zip(ends, self._files)):
      if not len(ids):
        continue
      if ids.min() < 0 or ids.max() >= INT32:
        at = int(np.flatnonzero((ids < 0) | (ids >= INT32))[0])
        raise InputError(f"edges of {self.name}: edge {self.count + at} has index {ids[at]}")
      self._most[k] = max(self._most[k], int(ids.max()))
      file.write(np.ascontiguousarray(ids, np.int32).data)
    if (features is None) != (self.features is None) and self.count:
      raise InputError(f"edges of {self.name}: some have features and some have none")
    if features is not None:
      features = np.asarray(features, np.float32)
      if features.ndim != 2 or len(features) != len(ends[0]) or not np.isfinite(features).all():
        raise InputError(f"features of {self.name} must be finite [{len(ends[0])}, F]")
      if self.features is None:
        place = self._places[0].with_suffix(".features")
        self.features = _Writer(place, np.float32, features.shape[1])
      self.features.append(features)
    self.count += len(ends[0])

  def check(self, num_senders: int, num_receivers: int) -> None:
    for file in self._files:
      file.close()
    bounds = (num_senders, num_receivers)
    for k, (side, end) in enumerate((("senders", self.name[0]), ("receivers", self.name[2]))):
      if self._most[k] >= bounds[k]:
        raise InputError(
          f"{side} of {self.name}: index {self._most[k]} is outside the {bounds[k]} nodes of type "
          f"{end!r}"
        )

  def chunks(self, numbered: bool = False):
    """(senders, receivers), int32, in the order they came; `numbered`: (first edge, both)."""
    for begin in range(0, self.count, CHUNK):
      part = tuple(
        np.fromfile(place, np.int32, min(CHUNK, self.count - begin), offset=4 * begin)
        for place in self._places
      )
      yield (begin, part) if numbered else part

  def close(self) -> None:
    for file in self._files:
      file.close()
    if self.features:
      self.features.close()

  def remove(self) -> None:
    self.close()
    for place in (*self._places, self._places[0].with_suffix(".features")):
      place.unlink(missing_ok=True)


def _header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
  """Of version 1.0 of the .npy format, filled up with blanks to HEADER bytes."""
  text = repr({"descr": dtype.str, "fortran_order": False, "shape": tuple(shape)})
  length = HEADER - 10
  return (
    b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + text.ljust(length - 1).encode() + b"\n"
  )


def _count(degree: np.ndarray, ids: np.ndarray) -> None:
  """degree[i] += number of i among `ids`, at the cost of their range only."""
  if len(ids):
    low, high = int(ids.min()), int(ids.max())
    degree[low : high + 1] += np.bincount(ids - low, minlength=high - low + 1)


def _windows(degree: np.ndarray, limit: int) -> Iterator[tuple[int, int]]:
  """Ranges of nodes that have `limit` edges at most together, or are one node."""
  ends, begin = np.cumsum(degree), 0
  while begin < len(degree):
    done = int(ends[begin - 1]) if begin else 0
    end = max(int(np.searchsorted(ends, done + limit, side="right")), begin + 1)
    yield begin, end
    begin = end


def _append_indptr(writer: _Writer, degree: np.ndarray) -> None:
  writer.append(np.zeros(1, np.int32))
  writer.append(np.cumsum(degree).astype(np.int32))
