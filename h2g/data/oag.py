"""oag-cs, oag-eng, oag-chem: papers of the Open Academic Graph by the venue they appeared in.

Papers, authors, affiliations and fields, each with an embedding of its text; papers published in a
journal carry its number. Split by year: up to 2016, 2017, from 2018 on. Relations between nodes of
one type (citations, levels of fields) hold both directions, each pair once; the others have a
reverse. Accuracy.

The archives are those of H2GB (arXiv 2407.10916): a dictionary with `node_forward`, `node_feature`
(a pandas table per type: id, emb, time) and `edge_list`
[target type][source type][relation][target][source]. They are read without running what they hold
(`h2g.data.torch_archive`). The loader of H2GB takes OAG_Chemistry.pt for "engineering" and
OAG_Engineering.pt for "chemistry"; here each takes its own file unless `swapped` is set.
"""

import numpy as np

from h2g.data import published
from h2g.data import store
from h2g.data import torch_archive
from h2g.errors import InputError
from h2g.graph import HeteroGraph

FILES = {
  "cs": "OAG_CS_20190919.pt",
  "eng": "OAG_Engineering.pt",
  "chem": "OAG_Chemistry.pt",
}
SWAPPED = {"cs": "cs", "eng": "chem", "chem": "eng"}
LABEL = ("venue", "paper", "PV_Journal")
CHUNK = 1 << 14


def load_cs(*, data_dir: str = "") -> HeteroGraph:
  """Computer science.

  Args:
    data_dir: folder of the archive, where the converted store is kept, too; "" for `oag` under
      H2G_DATA. What is missing is downloaded.
  """
  return _load("cs", data_dir)


def load_eng(*, data_dir: str = "", swapped: bool = False) -> HeteroGraph:
  """Engineering; `data_dir` as in `load_cs`, `swapped` takes the file that H2GB's loader takes."""
  return _load(SWAPPED["eng"] if swapped else "eng", data_dir)


def load_chem(*, data_dir: str = "", swapped: bool = False) -> HeteroGraph:
  """Chemistry; arguments as in `load_eng`."""
  return _load(SWAPPED["chem"] if swapped else "chem", data_dir)


def _load(subject: str, data_dir: str) -> HeteroGraph:
  name = FILES[subject]
  url = published.HUB + name
  files = published.Files("oag", data_dir, names=(name,), urls={name: url})
  convert = lambda files, out: _convert(files, name, out)
  facts = {"source": url}
  place = published.opened(files, f"oag-{subject}", convert, target="paper", facts=facts)
  return store.load(place)


def _convert(files, name: str, out) -> None:
  where = files.where(name)
  graph = torch_archive.load(where)
  for key in ("node_forward", "node_feature", "edge_list"):
    if not isinstance(graph, dict) or not isinstance(graph.get(key), dict):
      raise InputError(f"{where}: {key!r} is missing, it is no graph of OAG")
  counts, years = {}, None
  for kind, forward in graph["node_forward"].items():
    if kind == "venue":
      continue
    table = torch_archive.columns(graph["node_feature"].get(kind), path=where)
    wanted = ("id", "emb", "time") if kind == "paper" else ("id", "emb")
    for column in wanted:
      if column not in table:
        raise InputError(
          f"{where}: column {column!r} of {kind} is missing; there are {', '.join(table)}"
        )
    counts[kind] = len(forward)
    ids = table["id"].tolist()
    if len(ids) != len(forward) or len(set(ids)) < len(ids):
      raise InputError(f"{where}: {kind} has {len(forward)} nodes and {len(set(ids))} ids")
    bad = next((at for at, node in enumerate(ids) if forward.get(node) != at), None)
    if bad is not None:
      raise InputError(f"{where}: {kind} {ids[bad]!r} is row {bad} of its table, and another node")
    for begin in range(0, len(ids), CHUNK):
      rows = table["emb"][begin : begin + CHUNK]
      try:
        rows = np.stack([np.asarray(row, np.float32) for row in rows])
      except (TypeError, ValueError) as error:
        raise InputError(
          f"{where}: column 'emb' of {kind} holds no rows of numbers ({error})"
        ) from (error)
      out.features(kind, rows)
    if kind == "paper":
      try:
        years = np.asarray(table["time"]).astype(np.int64)
      except (TypeError, ValueError) as error:
        raise InputError(f"{where}: column 'time' of paper holds no years ({error})") from error
  if years is None:
    raise InputError(f"{where}: the graph is without its target type 'paper'")
  for target, by_source in graph["edge_list"].items():
    for source, by_relation in by_source.items():
      for relation, by_target in by_relation.items():
        if relation.startswith("rev_") or "venue" in (source, target):
          continue
        for end in (source, target):
          if end not in counts:
            raise InputError(f"{where}: relation {relation!r} names an unknown node type {end!r}")
        ends = _ends(by_target, f"{where}: relation {relation!r}")
        add = out.symmetric_edges if source == target else out.edges
        add((source, relation, target), ends[1], ends[0])
  labels = np.full(counts["paper"], -1, np.int32)
  venues = graph["edge_list"].get(LABEL[0], {}).get(LABEL[1], {}).get(LABEL[2])
  if not venues:
    raise InputError(f"{where}: relation {LABEL[2]!r} is missing: it says the venue of a paper")
  ends = _ends(venues, f"{where}: relation {LABEL[2]!r}")
  if len(ends[1]) and (ends[1].min() < 0 or ends[1].max() >= len(labels)):
    raise InputError(f"{where}: relation {LABEL[2]!r} names a paper outside {len(labels)}")
  _, first, inverse = np.unique(ends[0], return_index=True, return_inverse=True)
  labels[ends[1]] = np.argsort(np.argsort(first))[inverse]  # numbered as they come
  out.labels(labels)
  out.extra("year", years)
  labelled = labels >= 0
  out.split("train", labelled & (years <= 2016))
  out.split("val", labelled & (years == 2017))
  out.split("test", labelled & (years >= 2018))


def _ends(by_target, what: str) -> np.ndarray:
  """[2, E] targets and sources of {target: {source: time}}."""
  try:
    sizes = np.fromiter(map(len, by_target.values()), np.int64, len(by_target))
    targets = np.repeat(np.fromiter(by_target, np.int64, len(by_target)), sizes)
    sources = (source for one in by_target.values() for source in one)
    return np.stack([targets, np.fromiter(sources, np.int64, int(sizes.sum()))])
  except (AttributeError, TypeError, ValueError) as error:
    raise InputError(f"{what} is not {{target: {{source: time}}}} ({error})") from error
