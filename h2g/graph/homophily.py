"""How alike the labels of neighbours are, on relations and on metapaths (H2GB section 3).

A metapath here is a walk of two relations that starts and ends at the labelled node type. Its
induced graph joins u to v wherever at least one such walk leads from u to v: binary, so a pair
counts once however many walks join it. Only pairs whose both ends are labelled count; the official
code instead gives unlabelled nodes a random class. Self pairs (u = v, present in the official code)
are left out unless `self_pairs`.

Heterophily is 1 - homophily.
"""

from typing import NamedTuple

import numpy as np

from h2g.errors import InputError
from h2g.graph.graph import EdgeType
from h2g.graph.graph import HeteroGraph
from h2g.graph.graph import Schema

Metapath = tuple[EdgeType, EdgeType]
CELLS = 1 << 24  # most entries of a dense chunk of an induced graph


class Homophily(NamedTuple):
  """Homophily of one graph over labelled nodes.

  Attributes:
    pairs: ordered pairs (u, v) that count.
    edge: share of pairs with y_u = y_v.
    class_insensitive: 1 / (C - 1) sum_k max(0, h_k - n_k / n), h_k the edge homophily of the pairs
      that arrive at class k, n_k / n the share of class k among labelled nodes (arXiv 2110.14446).
    adjusted: (edge - sum_k p_k^2) / (1 - sum_k p_k^2), p_k the share of class k among the ends of
      the pairs, both ends counted (arXiv 2209.06177); NaN where all ends have one class.
  """

  pairs: int
  edge: float
  class_insensitive: float
  adjusted: float


class HeterophilyReport(NamedTuple):
  """The measures of a heterogeneous graph.

  Attributes:
    metapaths: {metapath: Homophily} of those that count.
    skipped: metapaths without a labelled pair, or whose pairs have one class only.
    edge, class_insensitive, adjusted: means over metapaths.
    h2_index: mean over metapaths of 1 - adjusted, the class-adjusted heterophily: 1 is as by
      chance, above it neighbours avoid their own class.
  """

  metapaths: dict[Metapath, Homophily]
  skipped: tuple[Metapath, ...]
  edge: float
  class_insensitive: float
  adjusted: float
  h2_index: float

  def table(self) -> str:
    """One line a metapath, then the means."""
    name = lambda path: " ".join([path[0][0], *(f"-{e[1]}-> {e[2]}" for e in path)])
    width = max([len(name(path)) for path in self.metapaths], default=8)
    lines = [f"{'metapath':<{width}}  {'pairs':>9}  edge   class  adjusted"]
    for path, h in self.metapaths.items():
      lines.append(f"{name(path):<{width}}  {h.pairs:>9}  {_figures(h)}")
    lines.append(f"{'mean':<{width}}  {'':>9}  {_figures(self)}")
    skipped = f"{len(self.skipped)} metapaths without labelled pairs of two classes skipped"
    lines.append(f"H2 index {self.h2_index:.3f}; {skipped}")
    return "\n".join(lines)

  __str__ = table


def _figures(h) -> str:
  return f"{h.edge:.3f}  {h.class_insensitive:.3f}  {h.adjusted:+.3f}"


def metapaths(schema: Schema) -> tuple[Metapath, ...]:
  """All walks of two relations that start and end at the target type, in schema order."""
  return tuple(
    (first, second)
    for first in schema.edge_types
    for second in schema.edge_types
    if first[0] == schema.target and second[0] == first[2] and second[2] == schema.target
  )


def relation_homophily(
  graph: HeteroGraph, edge_type: EdgeType, *, self_pairs: bool = False
) -> Homophily:
  """Homophily of one relation between nodes of the target type; edges count as they are listed.

  Raises:
    InputError: the relation does not join the target type to itself.
  """
  target = graph.schema.target
  if edge_type not in graph.edges or (edge_type[0], edge_type[2]) != (target, target):
    raise InputError(f"{edge_type} is no relation of this graph that joins {target} to {target}")
  edges = graph.edges[edge_type]
  count = int(edges.indptr[-1])
  senders, receivers = np.asarray(edges.senders)[:count], np.asarray(edges.receivers)[:count]
  labels, num_classes = np.asarray(graph.target_labels), graph.schema.num_classes
  keep = (labels[senders] >= 0) & (labels[receivers] >= 0)
  if not self_pairs:
    keep &= senders != receivers
  table = np.zeros((num_classes, num_classes), np.int64)
  np.add.at(table, (labels[senders[keep]], labels[receivers[keep]]), 1)
  return _measure(table, labels)


def metapath_homophily(graph: HeteroGraph, *, self_pairs: bool = False) -> HeterophilyReport:
  """Measures homophily on every two-hop metapath-induced graph of the target type.

  Add reverses first (`graph.with_reverses()`): H2GB counts walks over both directions. The induced
  graphs are made in chunks of rows and never held whole: memory is bounded by 16 M entries.

  Args:
    graph: on the host.
    self_pairs: whether u = v counts where a walk leads back.
  Raises:
    InputError: fewer than two classes, or no metapath with labelled pairs.
  """
  labels, num_classes = np.asarray(graph.target_labels), graph.schema.num_classes
  if num_classes < 2:
    raise InputError(f"homophily needs two classes, {graph.schema.target!r} has {num_classes}")
  found, skipped = {}, []
  for path in metapaths(graph.schema):
    table = _class_pairs(graph, path, labels, num_classes, self_pairs)
    measured = _measure(table, labels)
    if np.isnan(measured.adjusted):
      skipped.append(path)
    else:
      found[path] = measured
  if not found:
    raise InputError(f"no two-hop metapath joins labelled nodes of {graph.schema.target}")
  mean = lambda field: float(np.mean([getattr(h, field) for h in found.values()]))
  return HeterophilyReport(
    found,
    tuple(skipped),
    mean("edge"),
    mean("class_insensitive"),
    mean("adjusted"),
    1.0 - mean("adjusted"),
  )


def _class_pairs(graph, path: Metapath, labels, num_classes: int, self_pairs: bool) -> np.ndarray:
  """[C, C] how many induced pairs lead from class a to class b."""
  first, second = (graph.edges[name] for name in path)
  count = len(labels)
  table = np.zeros((num_classes, num_classes), np.int64)
  labelled = np.flatnonzero(labels >= 0)
  one_hot = np.zeros((count, num_classes), np.int64)
  one_hot[labelled, labels[labelled]] = 1
  chunk = max(1, CELLS // max(count, 1))
  for begin in range(0, len(labelled), chunk):
    rows = labelled[begin : begin + chunk]
    # Both hops by repeating: row -> middle nodes -> end nodes, marked in a dense chunk of bits.
    row, middle = _follow(np.arange(len(rows)), rows, first)
    reached = np.zeros((len(rows), count), bool)
    # A hub may lead to many ends: pairs are expanded in pieces of bounded size.
    fan = np.diff(second.sender_indptr)[middle]
    piece = np.searchsorted(np.cumsum(fan), np.arange(0, fan.sum() + CELLS, CELLS), side="right")
    for a, b in zip(piece, [*piece[1:], len(middle)]):
      at, end = _follow(row[a:b], middle[a:b], second)
      reached[at, end] = True
    if not self_pairs:
      reached[np.arange(len(rows)), rows] = False
    ends = reached.astype(np.float32) @ one_hot.astype(np.float32)
    np.add.at(table, labels[rows], np.rint(ends).astype(np.int64))
  return table


def _follow(owner: np.ndarray, nodes: np.ndarray, edges) -> tuple[np.ndarray, np.ndarray]:
  """(owner, receiver) of every edge that leaves `nodes`."""
  indptr = np.asarray(edges.sender_indptr, np.int64)
  counts = np.diff(indptr)[nodes]
  start = np.repeat(indptr[nodes] - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
  position = np.asarray(edges.sender_order)[start + np.arange(counts.sum())]
  return np.repeat(owner, counts), np.asarray(edges.receivers)[position]


def _measure(table: np.ndarray, labels: np.ndarray) -> Homophily:
  """The three homophilies of [C, C] counts of ordered pairs."""
  total, same = int(table.sum()), np.diag(table)
  if total == 0:
    return Homophily(0, np.nan, np.nan, np.nan)
  edge = same.sum() / total
  arriving = table.sum(0)
  shares = np.bincount(labels[labels >= 0], minlength=len(table)) / max((labels >= 0).sum(), 1)
  per_class = np.divide(same, arriving, out=np.zeros(len(table)), where=arriving > 0)
  insensitive = np.maximum(per_class - shares, 0).sum() / (len(table) - 1)
  ends = (table.sum(0) + table.sum(1)) / (2 * total)
  chance = float(np.square(ends).sum())
  adjusted = (edge - chance) / (1 - chance) if chance < 1 - 1e-12 else np.nan
  return Homophily(total, float(edge), float(insensitive), float(adjusted))
