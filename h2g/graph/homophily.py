"""How alike the labels of neighbours are, on relations and on metapaths (H2GB section 3).

A metapath here is a walk of two relations that starts and ends at the labelled node type. Its
induced graph joins u to v wherever at least one such walk leads from u to v: binary, so a pair
counts once however many walks join it (`count="walks"` counts it once per middle node instead).
Only pairs whose both ends are labelled count; the official code instead gives unlabelled nodes a
random class. Self pairs (u = v, present in the official code) are left out unless `self_pairs`.

Heterophily is 1 - homophily.
"""

from typing import NamedTuple

import numpy as np

from h2g.errors import InputError
from h2g.graph.graph import EdgeType
from h2g.graph.graph import HeteroGraph
from h2g.graph.graph import Schema

Metapath = tuple[EdgeType, EdgeType]
COUNTS = ("pairs", "walks")
CELLS = 1 << 24  # most bytes of a chunk of an induced graph
BITS = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)  # ones of each byte


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


def metapath_homophily(
  graph: HeteroGraph, *, self_pairs: bool = False, count: str = "pairs"
) -> HeterophilyReport:
  """Measures homophily on every two-hop metapath-induced graph of the target type.

  Add reverses first (`graph.with_reverses()`): H2GB counts walks over both directions. The induced
  graphs are made in chunks of bits and never held whole: memory is bounded by some 16 M bytes.

  Args:
    graph: on the host.
    self_pairs: whether u = v counts where a walk leads back.
    count: "pairs", each pair once however many walks join it; "walks", once per middle node.
  Raises:
    InputError: fewer than two classes, or no metapath with labelled pairs.
  """
  if count not in COUNTS:
    raise InputError(f"homophily cannot count {count!r}: choose from {', '.join(COUNTS)}")
  class_pairs = _class_pairs if count == "pairs" else _class_walks
  labels, num_classes = np.asarray(graph.target_labels), graph.schema.num_classes
  if num_classes < 2:
    raise InputError(f"homophily needs two classes, {graph.schema.target!r} has {num_classes}")
  found, skipped = {}, []
  for path in metapaths(graph.schema):
    table = class_pairs(graph, path, labels, num_classes, self_pairs)
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
  """[C, C] how many induced pairs lead from class a to class b.

  A middle node is a row of bits, one per labelled node it leads to; a start node reaches the union
  of the rows of its middle nodes. Bits stand class after class, so that counting is by bytes.
  """
  first, second = (graph.edges[name] for name in path)
  table = np.zeros((num_classes, num_classes), np.int64)
  owners, middles, sources, ends = _hops(first, second, labels)
  if not len(owners) or not len(ends):
    return table
  nodes, position = np.unique(owners, return_index=True)
  if len(nodes) == len(owners):  # one middle each: no pair has two walks
    return _class_walks(graph, path, labels, num_classes, self_pairs)
  place, starts = _by_class(labels, num_classes)
  ends = place[ends]
  stop = np.append(position[1:], len(owners))
  width = max(1, CELLS // max(1, len(second.sender_indptr) - 1))  # bytes of a row held at a time
  for begin in range(0, int(starts[-1]), width):
    width_here = min(width, int(starts[-1]) - begin)
    here = (ends // 8 >= begin) & (ends // 8 < begin + width_here)
    bits = np.zeros((len(second.sender_indptr) - 1, width_here), np.uint8)
    bit = np.left_shift(1, ends[here] % 8).astype(np.uint8)
    np.bitwise_or.at(bits, (sources[here], ends[here] // 8 - begin), bit)
    at, rows = 0, max(1, CELLS // width_here)  # edges gathered at a time, whole start nodes
    while at < len(nodes):
      last = max(at + 1, int(np.searchsorted(stop, position[at] + rows, side="right")))
      reached = _union(bits, middles[position[at] : stop[last - 1]], position[at:last], rows)
      if not self_pairs:
        own = place[nodes[at:last]]
        inside = np.flatnonzero((own // 8 >= begin) & (own // 8 < begin + width_here))
        clear = np.left_shift(1, own[inside] % 8).astype(np.uint8)
        reached[inside, own[inside] // 8 - begin] &= ~clear
      cuts = np.clip(starts - begin, 0, width_here)
      for label in range(num_classes):
        ones = BITS[reached[:, cuts[label] : cuts[label + 1]]].sum(1, dtype=np.int64)
        np.add.at(table[:, label], labels[nodes[at:last]], ones)
      at = last
  return table


def _union(bits: np.ndarray, middles: np.ndarray, position: np.ndarray, rows: int) -> np.ndarray:
  """[nodes, bytes]: the rows of `bits` of each node's middles or-ed; `position` is their start."""
  if len(middles) <= rows:
    return np.bitwise_or.reduceat(bits[middles], position - position[0], axis=0)
  out = np.zeros((1, bits.shape[1]), np.uint8)  # one hub, larger than a chunk
  for begin in range(0, len(middles), rows):
    out |= np.bitwise_or.reduce(bits[middles[begin : begin + rows]], axis=0)
  return out


def _by_class(labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
  """Bit of each node, -1 unlabelled, and the bytes [C + 1] at which the classes start."""
  counts = np.bincount(labels[labels >= 0], minlength=num_classes)
  starts = np.concatenate([[0], np.cumsum(-(-counts // 8))])
  place = np.full(len(labels), -1, np.int64)
  for label in range(num_classes):
    members = np.flatnonzero(labels == label)
    place[members] = 8 * starts[label] + np.arange(len(members))
  return place, starts


def _class_walks(graph, path: Metapath, labels, num_classes: int, self_pairs: bool) -> np.ndarray:
  """[C, C] how many walks lead from class a to class b; parallel edges are one."""
  first, second = (graph.edges[name] for name in path)
  size = len(second.sender_indptr) - 1
  owners, middles, sources, ends = _hops(first, second, labels)
  into, out = (np.zeros((size, num_classes), np.int64) for _ in range(2))
  np.add.at(into, (middles, labels[owners]), 1)
  np.add.at(out, (sources, labels[ends]), 1)
  table = into.T @ out
  if not self_pairs:  # walks that come back
    back = np.intersect1d(owners * size + middles, ends * size + sources, assume_unique=True)
    own = labels[back // size]
    np.subtract.at(table, (own, own), 1)
  return table


def _hops(first, second, labels) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Distinct edges (owners, middles), (sources, ends) whose owners and ends are labelled.

  The first are in order of owners.
  """
  size = len(second.sender_indptr) - 1
  owners, middles = _follow(np.flatnonzero(labels >= 0), first)
  sources, ends = _follow(np.arange(size), second)
  keep = labels[ends] >= 0
  owners, middles = np.divmod(np.unique(owners * size + middles), max(size, 1))
  ends, sources = np.divmod(np.unique(ends[keep] * size + sources[keep]), max(size, 1))
  return owners, middles, sources, ends


def _follow(nodes: np.ndarray, edges) -> tuple[np.ndarray, np.ndarray]:
  """(sender, receiver), int64, of every edge that leaves `nodes`, sender after sender."""
  indptr = np.asarray(edges.sender_indptr, np.int64)
  counts = np.diff(indptr)[nodes]
  start = np.repeat(indptr[nodes] - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
  position = np.asarray(edges.sender_order)[start + np.arange(counts.sum())]
  return np.repeat(nodes, counts), np.asarray(edges.receivers)[position].astype(np.int64)


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
