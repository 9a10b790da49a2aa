"""PDNS: domain names and the addresses they resolved to; malicious or benign domains.

Domains with 10 features and addresses, seen in 61 snapshots of a passive DNS service. Relations
`apex` and `similar` (between domains; both directions, each pair once) and `resolves` (domain to
address, with a reverse). Domains of type malicious are 1, benign 0, others, and those on no edge of
the snapshots taken, -1. Score by F1.

Source: PDNS-Net, arXiv 2203.07969, as H2GB packs it. H2GB (arXiv 2407.10916) takes snapshots 0-59
and `domains2.csv` and splits all labelled domains 70/20/10 at random, anew in every run:
`split="random"`, with a seed. Its class documents another protocol, over time, with `domains.csv`:
`split="time"`, where training and validation (80/20) are labelled domains of snapshots `start` up
to `end`, and test are those that first appear in the snapshots up to `test`. There the edges of
later snapshots are in the one graph from the beginning, which H2GB's training graph does not see.
"""

import numpy as np

from h2g.data import files as shared
from h2g.data import published
from h2g.data import store
from h2g.errors import InputError
from h2g.graph import HeteroGraph

ARCHIVE = "PDNS.zip"
DOMAINS = {"random": "domains2.csv", "time": "domains.csv"}
DOMAIN_FEATURES, IP_FEATURES = "domain_features.csv", "ip_features.csv"
DOMAIN, IP = "domain_node", "ip_node"
RELATIONS = {
  "apex": (DOMAIN, "apex", DOMAIN),
  "similar": (DOMAIN, "similar", DOMAIN),
  "resolves": (DOMAIN, "resolves", IP),
}
LABELS = {"malicious": 1, "benign": 0}
SNAPSHOTS = {"random": (0, 60, 60), "time": (0, 5, 6)}  # start, end, test


def load(*, data_dir: str = "", split: str = "random", split_seed: int = 0) -> HeteroGraph:
  """Domains and addresses.

  Args:
    data_dir: folder of `PDNS.zip` or of its tables, where the converted stores are kept, too; ""
      for `pdns` under H2G_DATA. What is missing is downloaded.
    split: "random", what the benchmark runs, or "time".
    split_seed: of the parts that are drawn.
  """
  shared.choose("pdns", split=(split, tuple(DOMAINS)))
  start, end, test = SNAPSHOTS[split]
  snapshots = tuple(_snapshot(number) for number in range(start, test))
  url = published.HUB + ARCHIVE
  files = published.Files(
    "pdns",
    data_dir,
    names=(DOMAINS[split], DOMAIN_FEATURES, IP_FEATURES, *snapshots),
    archive=ARCHIVE,
    urls={ARCHIVE: url},
  )
  convert = lambda files, out: _convert(files, DOMAINS[split], snapshots, end - start, out)
  names, facts = ("benign", "malicious"), {"source": url}
  place = published.opened(
    files, f"pdns-{split}", convert, target=DOMAIN, class_names=names, facts=facts
  )
  graph = store.load(place)
  labelled = np.asarray(graph.target_labels) >= 0
  early = store.extra(place, "early")
  if split == "random":
    rows = np.flatnonzero(labelled)
    parts = published.cut(rows, split_seed, train=0.7, val=0.2, test=0.1)
  else:
    parts = published.cut(np.flatnonzero(labelled & early), split_seed, train=0.8, val=0.2)
    parts["test"] = np.flatnonzero(labelled & ~early)
  return published.with_split(graph, parts.items())


def _snapshot(number: int) -> str:
  return f"timestamp_{number}_edges.csv"


def _convert(files, domains: str, snapshots, num_early: int, out) -> None:
  rows = {}
  for kind, name in ((DOMAIN, DOMAIN_FEATURES), (IP, IP_FEATURES)):
    rows[kind] = _features(files, name, kind, out)
  given = published.table(files, domains, (DOMAIN, "type"))
  where = files.where(domains)
  known = _integers(given[DOMAIN], where, DOMAIN)
  places = _rows(rows[DOMAIN], known, f"{where}: column {DOMAIN!r}")
  twice = np.flatnonzero(np.bincount(places, minlength=1) > 1)
  if len(twice):
    raise InputError(f"{where}: {DOMAIN} {rows[DOMAIN][twice[0]]} stands twice")
  labels = np.full(len(rows[DOMAIN]), -1, np.int32)
  labels[places] = [LABELS.get(value, -1) for value in given["type"]]
  seen, early = np.zeros(len(labels), bool), np.zeros(len(labels), bool)
  for at, name in enumerate(snapshots):
    where, found = files.where(name), published.table(files, name, ("type", "source", "target"))
    kinds = np.array(found["type"])
    if strange := sorted(set(found["type"]) - set(RELATIONS)):
      raise InputError(
        f"{where}: unknown relation {strange[0]!r}; there are {', '.join(RELATIONS)}"
      )
    for relation, edge_type in RELATIONS.items():
      members = np.flatnonzero(kinds == relation)
      ends = []
      for column, kind in (("source", edge_type[0]), ("target", edge_type[2])):
        values = _integers([found[column][k] for k in members], where, column)
        ends.append(_rows(rows[kind], values, f"{where}: column {column!r} of {relation}"))
        if kind == DOMAIN:
          seen[ends[-1]] = True
          early[ends[-1]] |= at < num_early
      symmetric = edge_type[0] == edge_type[2]
      (out.symmetric_edges if symmetric else out.edges)(edge_type, *ends)
  labels[~seen] = -1
  out.labels(labels)
  out.extra("early", early)


def _features(files, name: str, kind: str, out) -> np.ndarray:
  """[N] ids of the nodes, ascending; features go to the store in that order."""
  where = files.where(name)
  with files.open(name) as file:
    header = shared.decode(file.readline(), where).strip().split(",")
  if kind not in header:
    raise InputError(f"{where}: column {kind!r} is missing; the first line names {header}")
  chunks = list(published.numbers(files, name, np.float64, columns=len(header), skip=1))
  if not chunks:
    raise InputError(f"{where} holds no nodes")
  values = np.concatenate(chunks)
  column = values[:, header.index(kind)]
  ids = column.astype(np.int64)
  if (ids != column).any():
    raise InputError(f"{where}: column {kind!r} holds numbers that are not whole")
  order = np.argsort(ids, kind="stable")
  twice = np.flatnonzero(np.diff(ids[order]) == 0)
  if len(twice):
    raise InputError(f"{where}: {kind} {ids[order][twice[0]]} stands twice; every node has one row")
  out.features(kind, np.delete(values, header.index(kind), axis=1)[order])
  return ids[order]


def _integers(values, where: str, column: str) -> np.ndarray:
  numbers = shared.numbers(values, path=where, column=column)
  if not np.isfinite(numbers).all() or (numbers != np.round(numbers)).any():
    raise InputError(f"{where}: column {column!r} holds numbers that are not whole")
  return numbers.astype(np.int64)


def _rows(ids: np.ndarray, values: np.ndarray, what: str) -> np.ndarray:
  rows = np.minimum(np.searchsorted(ids, values), len(ids) - 1)
  bad = np.flatnonzero(ids[rows] != values)
  if len(bad):
    raise InputError(f"{what}: {values[bad[0]]} in row {bad[0] + 1} is no node")
  return rows
