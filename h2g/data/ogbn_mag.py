"""ogbn-mag and mag-year: a part of the Microsoft Academic Graph; papers by venue, or by year.

736,389 papers, 1,134,649 authors, 8,740 institutions, 59,965 fields of study. Papers have 128
features; authors and fields get the mean of their papers', institutions the mean of their authors'.
`cites` holds both directions, each pair once; the other relations have a reverse. Accuracy.

Source: Open Graph Benchmark, arXiv 2005.00687, `mag.zip`; H2GB (arXiv 2407.10916) reads it as here,
but splits mag-year with another random split in every conversion.
"""

import dataclasses

import numpy as np

from h2g.data import published
from h2g.data import store
from h2g.errors import InputError
from h2g.graph import HeteroGraph

ARCHIVE = "mag.zip"
URL = "http://snap.stanford.edu/ogb/data/nodeproppred/" + ARCHIVE
TYPES = ("paper", "author", "institution", "field_of_study")
CITES = ("paper", "cites", "paper")
RELATIONS = (
  ("author", "affiliated_with", "institution"),
  ("author", "writes", "paper"),
  CITES,
  ("paper", "has_topic", "field_of_study"),
)
COUNTS, FEATURES = "num-node-dict.csv.gz", "node-feat/paper/node-feat.csv.gz"
TRIPLES = "triplet-type-list.csv.gz"
YEAR, LABEL = "node-feat/paper/node_year.csv.gz", "node-label/paper/node-label.csv.gz"
PARTS = {part: f"split/time/paper/{name}.csv.gz" for part, name in
         (("train", "train"), ("val", "valid"), ("test", "test"))}  # fmt: skip
EDGES = {name: f"relations/{'___'.join(name)}/edge.csv.gz" for name in RELATIONS}
BANDS = 5


def load_venue(*, data_dir: str = "") -> HeteroGraph:
  """349 venues; the published split by year: up to 2017, 2018, 2019.

  Args:
    data_dir: folder of `mag.zip` or of its `raw` and `split` folders, where the converted
      `mag.store` is kept, too; "" for `ogbn-mag` under H2G_DATA. What is missing is downloaded.
  """
  return store.load(_store(data_dir))


def load_year(*, data_dir: str = "", split_seed: int = 0) -> HeteroGraph:
  """Five bands of years with about as many papers each; random split 50/25/25.

  Band k holds the years from quantile k/5 on and below quantile (k + 1)/5 of all papers.

  Args:
    data_dir: as in `load_venue`; both read one store.
    split_seed: of the split.
  """
  place = _store(data_dir)
  year = store.extra(place, "year")
  cuts = np.quantile(year, np.arange(1, BANDS) / BANDS)
  labels = np.searchsorted(cuts, year, side="right").astype(np.int32)
  graph = store.load(place)
  papers = graph.nodes["paper"].replace(labels=labels)
  names = tuple(
    f"{low}-{high}" for low, high in zip(["", *map(str, cuts)], [*map(str, cuts), ""], strict=True)
  )
  schema = dataclasses.replace(graph.schema, num_classes=BANDS, class_names=names)
  graph = graph.replace(nodes=graph.nodes | {"paper": papers}, schema=schema)
  parts = published.cut(np.arange(len(labels)), split_seed, train=0.5, val=0.25, test=0.25)
  return published.with_split(graph, parts.items())


def _store(data_dir: str):
  raw = (COUNTS, TRIPLES, FEATURES, YEAR, LABEL, *EDGES.values(), *PARTS.values())
  files = published.Files("ogbn-mag", data_dir, names=raw, archive=ARCHIVE, urls={ARCHIVE: URL})
  return published.opened(files, "mag", _convert, target="paper", facts={"source": URL})


def _convert(files, out) -> None:
  given = published.table(files, COUNTS, TYPES)
  try:
    counts = {name: int(given[name][0]) for name in TYPES}
  except (ValueError, IndexError) as error:
    raise InputError(f"{files.where(COUNTS)} holds no numbers of nodes ({error})") from error
  columns = ("source", "relation", "target")
  triples = published.table(files, TRIPLES, columns, header=False)
  for name in zip(*(triples[column] for column in columns)):
    if name not in RELATIONS:
      raise InputError(f"{files.where(TRIPLES)}: unknown relation {' -> '.join(name)}")
  for rows in published.numbers(files, FEATURES, np.float32):
    out.features("paper", rows)
  papers = out.read_features("paper")
  if len(papers) != counts["paper"]:
    raise InputError(
      f"{files.where(FEATURES)} has {len(papers)} rows, {COUNTS} says {counts['paper']}: it is "
      "truncated"
    )
  edges = {}
  for name, file in EDGES.items():
    parts = list(published.numbers(files, file, np.int64, columns=2))
    edges[name] = ends = np.concatenate([np.zeros((0, 2), np.int64), *parts]).T
    for row, kind in zip(ends, (name[0], name[2])):
      bad = np.flatnonzero((row < 0) | (row >= counts[kind]))
      if len(bad):
        raise InputError(
          f"{files.where(file)} row {bad[0] + 1}: {kind} {row[bad[0]]} is outside 0.."
          f"{counts[kind] - 1}"
        )
    (out.symmetric_edges if name == CITES else out.edges)(name, *ends)
  affiliated, writes, topics = edges[RELATIONS[0]], edges[RELATIONS[1]], edges[RELATIONS[3]]
  for rows in published.mean_of(writes[1], writes[0], papers, counts["author"]):
    out.features("author", rows)
  for rows in published.mean_of(
    affiliated[0], affiliated[1], out.read_features("author"), counts["institution"]
  ):
    out.features("institution", rows)
  for rows in published.mean_of(topics[0], topics[1], papers, counts["field_of_study"]):
    out.features("field_of_study", rows)
  out.labels(_column(files, LABEL, counts["paper"]))
  out.extra("year", _column(files, YEAR, counts["paper"]))
  for part, name in PARTS.items():
    rows, mask = _column(files, name, None), np.zeros(counts["paper"], bool)
    if len(rows) and (rows.min() < 0 or rows.max() >= counts["paper"]):
      raise InputError(f"{files.where(name)}: a row outside the {counts['paper']} papers")
    mask[rows] = True
    out.split(part, mask)


def _column(files, name: str, count: int | None) -> np.ndarray:
  chunks = list(published.numbers(files, name, np.int64, columns=1))
  values = np.concatenate([np.zeros((0, 1), np.int64), *chunks])[:, 0]
  if count is not None and len(values) != count:
    raise InputError(
      f"{files.where(name)} has {len(values)} rows for {count} papers: it is truncated"
    )
  return values
