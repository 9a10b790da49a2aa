"""Graphs as .npz files: plain arrays under readable names, nothing pickled."""

from collections.abc import Callable
import contextlib
import os
from pathlib import Path
from typing import Any
import zipfile
import zlib

import numpy as np

from h2g.errors import InputError
from h2g.graph.graph import HeteroGraph
from h2g.graph.padding import pad
from h2g.graph.padding import padded_share

# What reading a damaged archive, or a file of another kind, can raise: a lone array is no context
# manager (TypeError), a flipped bit may ask for a compression or zip version that does not exist.
UNREADABLE = (
  OSError,
  ValueError,
  EOFError,
  TypeError,
  AttributeError,
  NotImplementedError,
  RuntimeError,
  MemoryError,
  zipfile.BadZipFile,
  zlib.error,
)


def save_npz(graph: HeteroGraph, path: str | Path) -> None:
  """Writes a graph, whole or not at all.

  Keys: `target`, `class_names`; per node type `nodes/<type>/num_nodes`, `.../features`,
  `.../labels`; per relation `edges/<source>/<relation>/<target>/index` [2, E] (senders, receivers),
  `.../features`; `splits/<name>`. `load_npz` reads it back. Padding, `incoming` and `ids` are not
  written.

  Raises:
    InputError: a name holds a slash; the file cannot be written.
  """
  if padded_share(graph):
    graph = pad(graph, {}, {})
  arrays = {
    "target": np.array(graph.schema.target),
    "class_names": np.array(graph.schema.class_names),
  }
  for name in graph.schema.node_types:  # the file keeps their order
    nodes = graph.nodes[name]
    key = f"nodes/{_plain(name)}"
    arrays[f"{key}/num_nodes"] = np.array(len(nodes.ids))
    for field in ("features", "labels"):
      if getattr(nodes, field) is not None:
        arrays[f"{key}/{field}"] = np.asarray(getattr(nodes, field))
  for name in graph.schema.edge_types:
    edges = graph.edges[name]
    key = "edges/" + "/".join(map(_plain, name))
    count = int(edges.indptr[-1])
    arrays[f"{key}/index"] = np.stack([edges.senders[:count], edges.receivers[:count]])
    if edges.features is not None:
      arrays[f"{key}/features"] = np.asarray(edges.features[:count])
  for name, mask in graph.splits.items():
    arrays[f"splits/{_plain(name)}"] = np.asarray(mask)
  path = Path(path)
  partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    with open(partial, "wb") as file:
      np.savez_compressed(file, **arrays)
    os.replace(partial, path)
  except OSError as error:
    raise InputError(f"{path} cannot be written: {error.strerror}") from error
  finally:
    with contextlib.suppress(OSError):  # it is gone when all went well, or was never there
      partial.unlink()


def load_npz(path: str | Path) -> HeteroGraph:
  """Reads and validates a graph that `save_npz`, or anyone who follows its keys, wrote.

  `class_names`, `features`, `labels`, `num_nodes` and `splits` are optional as in
  `HeteroGraph.from_arrays`.

  Raises:
    InputError: names the file and the key, shape, index or value that cannot be used.
  """
  arrays = read_npz(path)
  try:
    return HeteroGraph.from_arrays(**parts_of(arrays))
  except InputError as error:
    raise InputError(f"{path}: {error}") from error


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
  """All arrays of an .npz file; InputError for one that is damaged or holds objects."""
  path = Path(path)
  try:
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
      arrays = {key: archive[key] for key in archive.files}
      # No checksum covers the list of entries: damage there can hide some, but not their number.
      file.seek(-12, os.SEEK_END)
      listed = int.from_bytes(file.read(2), "little")
      if not archive.zip.comment and listed not in (len(arrays), 0xFFFF):  # 65535: told elsewhere
        raise ValueError(f"{listed} arrays are listed, {len(arrays)} found")
  except FileNotFoundError as error:
    raise InputError(f"{path} does not exist: give the path of a graph's .npz file") from error
  except UNREADABLE as error:
    raise InputError(
      f"{path} is no readable .npz of plain arrays ({error}): write it with h2g.graph.save_npz"
    ) from error
  return arrays


def parts_of(
  arrays: dict[str, np.ndarray], wrong: Callable[[str], None] | None = None
) -> dict[str, Any]:
  """The arguments of `HeteroGraph.from_arrays` that arrays under the keys of `save_npz` say.

  Args:
    arrays: {key: array}.
    wrong: called with what is wrong with a key, which is then left out; by default the first such
      is raised as InputError.
  """

  def refuse(message: str) -> None:
    raise InputError(message)

  wrong = wrong or refuse
  if "target" not in arrays:
    wrong("key 'target' is missing: the node type that carries the labels")
  nodes, edges, splits = {}, {}, {}
  for key, value in arrays.items():
    match key.split("/"):
      case ["target"] | ["class_names"]:
        pass
      case ["nodes", name, "num_nodes"]:
        if value.shape != () or not np.issubdtype(value.dtype, np.integer):
          wrong(f"key {key!r} must be one integer")
        else:
          nodes.setdefault(name, {})["num_nodes"] = int(value)
      case ["nodes", name, ("features" | "labels") as field]:
        nodes.setdefault(name, {})[field] = value
      case ["edges", source, relation, target, ("index" | "features") as field]:
        edges.setdefault((source, relation, target), {})[field] = value
      case ["splits", name]:
        splits[name] = value
      case _:
        wrong(
          f"key {key!r} is not understood: nodes/<type>/..., "
          "edges/<source>/<relation>/<target>/..., splits/<name>, target, class_names"
        )
  given = {}
  for name, fields in edges.items():
    key, index = f"edges/{'/'.join(name)}/index", fields.get("index")
    if index is None:
      wrong(f"key {key!r} is missing")
    elif index.ndim != 2 or index.shape[0] != 2:
      wrong(f"key {key!r} has shape {list(index.shape)}: give [2, E]")
    else:
      given[name] = (*index, fields.get("features"))
  class_names = arrays.get("class_names", np.zeros(0, str))
  if class_names.ndim != 1:
    wrong(f"key 'class_names' has shape {list(class_names.shape)}: give [C] names")
    class_names = class_names.reshape(-1)
  return {
    "nodes": nodes,
    "edges": given,
    "target": str(arrays.get("target", "")),
    "class_names": tuple(map(str, class_names)) or None,
    "splits": splits,
  }


def _plain(name: str) -> str:
  if "/" in name:
    raise InputError(f"the name {name!r} holds a slash, which separates names in files: rename it")
  return name
