"""RCDD: risky commodities on an e-commerce platform; the largest of the H2GB graphs.

13,806,619 nodes and 157,814,864 edges of seven types each, 256 features. Items are normal (0) or
risky (1); most are not labelled. Score by F1.

Source: ICDM 2022 competition, doi 10.1145/3583780.3615117, `AliRCD_ICDM.zip`; H2GB (arXiv
2407.10916) reads it as here, but splits the published training labels 80/20 with another random
split in every run and adds no reverse relations.
"""

import numpy as np

from h2g.data import published
from h2g.data import store
from h2g.errors import InputError
from h2g.graph import HeteroGraph

ARCHIVE = "AliRCD_ICDM.zip"
URL = "https://s3.cn-north-1.amazonaws.com.cn/dgl-data/dataset/openhgnn/" + ARCHIVE
NODES, EDGES, TRAIN, TEST = (
  f"AliRCD_ICDM_{part}.csv" for part in ("nodes", "edges", "train_labels", "test_labels")
)
EDGE_COLUMNS = "source, target, source type, target type, edge type"


def load(*, data_dir: str = "", split_seed: int = 0) -> HeteroGraph:
  """Seven node types; labels of `item`; every relation with its reverse.

  Node rows of a type are in the order of the file, which is what its ids mean there: the loader of
  PyTorch Geometric once numbered them otherwise.

  Args:
    data_dir: folder of `AliRCD_ICDM.zip` or of its four tables, where the converted `rcdd.store`
      is kept, too; "" for `rcdd` under H2G_DATA. What is missing is downloaded.
    split_seed: of train and val, 80/20 of the published training labels; test is published.
  """
  files = published.Files(
    "rcdd",
    data_dir,
    names=(NODES, EDGES, TRAIN, TEST),
    archive=ARCHIVE,
    urls={ARCHIVE: URL},
  )
  names = ("normal", "risk")
  facts = {"source": URL}
  place = published.opened(files, "rcdd", _convert, target="item", class_names=names, facts=facts)
  graph = store.load(place)
  rows = {name: np.flatnonzero(mask) for name, mask in graph.splits.items()}
  parts = published.cut(rows["train"], split_seed, train=0.8, val=0.2)
  return published.with_split(graph, (parts | {"test": rows["test"]}).items())


def _convert(files, out) -> None:
  kinds, codes, rows = _nodes(files, out)
  relations = {}
  where = files.where(EDGES)
  with files.open(EDGES) as file:
    for line, content in published.blocks(file):
      _edges(content, where, line, kinds, codes, rows, relations, out)
  if "item" not in kinds:
    raise InputError(f"{files.where(NODES)}: no node is of type 'item', which carries the labels")
  labels = np.full(int((codes == kinds["item"]).sum()), -1, np.int32)
  parts = {}
  for part, name, delimiter in (("train", TRAIN, ","), ("test", TEST, "\t")):
    found = np.concatenate(
      [
        np.zeros((0, 2), np.int64),
        *published.numbers(files, name, np.int64, columns=2, delimiter=delimiter),
      ]
    )
    where, (ids, values) = files.where(name), found.T
    bad = np.flatnonzero((ids < 0) | (ids >= len(codes)) | (values < 0) | (values > 1))
    if len(bad) or (codes[ids] != kinds["item"]).any():
      at = bad[0] if len(bad) else np.flatnonzero(codes[ids] != kinds["item"])[0]
      raise InputError(f"{where} row {at + 1}: {ids[at]}, {values[at]} is no item and label 0 or 1")
    parts[part] = rows[ids]
    if len(np.unique(ids)) < len(ids) or (labels[parts[part]] >= 0).any():
      raise InputError(f"{where}: an item is labelled twice")
    labels[parts[part]] = values
  out.labels(labels)
  for part, found in parts.items():
    mask = np.zeros(len(labels), bool)
    mask[found] = True
    out.split(part, mask)


def _nodes(files, out):
  """({type: code}, [N] type code, [N] row in its type) by id; features go to the store."""
  kinds, counts, all_ids, all_codes, all_rows = {}, [], [], [], []
  where = files.where(NODES)
  with files.open(NODES) as file:
    for line, content in published.blocks(file):
      fields = [text.split(b",") for text in content.splitlines()]
      for at, found in enumerate(fields):
        if len(found) != 3 or not found[0].isdigit() or not found[1]:
          raise InputError(
            f"{where} line {line + at} is {b','.join(found)[:60]!r}: an id, a type and features "
            "joined by colons are expected; the file is truncated or no such table"
          )
      codes = np.empty(len(fields), np.int8)
      for at, (_, kind, _) in enumerate(fields):
        kind = kind.decode("utf-8", "replace").strip()
        if kind not in kinds:
          if len(kinds) == 127:
            raise InputError(
              f"{where} line {line + at}: more than 127 node types; it is no such table"
            )
          kinds[kind] = len(kinds)
          counts.append(0)
        codes[at] = kinds[kind]
      rows = np.empty(len(fields), np.int32)
      for kind, code in kinds.items():
        members = np.flatnonzero(codes == code)
        if len(members):
          text = b"\n".join(fields[at][2] for at in members)
          out.features(kind, published.parsed(text, np.float32, where, line, ":"))
        rows[members] = np.arange(counts[code], counts[code] + len(members))
        counts[code] += len(members)
      all_ids.append(np.array([int(found[0]) for found in fields], np.int64))
      all_codes.append(codes)
      all_rows.append(rows)
  ids = np.concatenate([np.zeros(0, np.int64), *all_ids])
  if not len(ids):
    raise InputError(f"{where} is empty")
  if ids.max() >= len(ids):
    raise InputError(f"{where}: node id {ids.max()} among {len(ids)} nodes, ids count from 0")
  seen = np.bincount(ids, minlength=len(ids))
  if seen.max() > 1:
    raise InputError(f"{where}: node id {seen.argmax()} stands {seen.max()} times")
  codes, rows = np.empty(len(ids), np.int8), np.empty(len(ids), np.int32)
  codes[ids], rows[ids] = np.concatenate(all_codes), np.concatenate(all_rows)
  return kinds, codes, rows


def _edges(content, where, line, kinds, codes, rows, relations, out) -> None:
  fields = [text.split(b",") for text in content.splitlines()]
  for at, found in enumerate(fields):
    if len(found) != 5 or not (found[0].isdigit() and found[1].isdigit()):
      raise InputError(
        f"{where} line {line + at} is {b','.join(found)[:60]!r}: {EDGE_COLUMNS} are expected; the "
        "file is truncated or no such table"
      )
  sources, targets, *names = zip(*fields)
  ends = np.array([sources, targets], np.bytes_).astype(np.int64)
  if ends.max() >= len(codes):
    at = int(np.flatnonzero((ends >= len(codes)).any(0))[0])
    raise InputError(f"{where} line {line + at}: node {ends[:, at].max()} is not in {NODES}")
  places, triples = {}, list(zip(*names))
  which = np.array([places.setdefault(triple, len(places)) for triple in triples])
  for triple, code in places.items():
    source, target, relation = (part.decode("utf-8", "replace").strip() for part in triple)
    members = np.flatnonzero(which == code)
    for end, name in ((0, source), (1, target)):
      wrong = members if name not in kinds else members[codes[ends[end, members]] != kinds[name]]
      if len(wrong):
        what = (
          "no node type" if name not in kinds else f"not the type of node {ends[end, wrong[0]]}"
        )
        raise InputError(f"{where} line {line + wrong[0]}: {name!r} is {what}")
    if relations.setdefault(relation, (source, target)) != (source, target):
      first = " -> ".join(relations[relation])
      raise InputError(
        f"{where} line {line + members[0]}: unknown relation {source} -> {relation} -> {target}, "
        f"it was {first} before"
      )
    found = rows[ends[:, members]]
    out.edges((source, relation, target), found[0], found[1])
