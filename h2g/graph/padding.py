"""Padding to a handful of shapes, so that a run compiles a handful of programs.

Padding stands behind what is real: node rows with mask False, edge places past `indptr[-1]`. Runs
on the host, on NumPy arrays.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math

import numpy as np

from h2g.errors import InputError
from h2g.graph.graph import EdgeType
from h2g.graph.graph import HeteroGraph


@dataclasses.dataclass(frozen=True)
class Bucket:
  """Capacities of a padded graph, aligned with the schema's node and edge types; hashable."""

  num_nodes: tuple[int, ...]
  num_edges: tuple[int, ...]

  @property
  def total(self) -> int:
    """Node rows and edge places together."""
    return sum(self.num_nodes) + sum(self.num_edges)

  def holds(self, other: "Bucket") -> bool:
    pairs = zip(self.num_nodes + self.num_edges, other.num_nodes + other.num_edges, strict=True)
    return all(capacity >= size for capacity, size in pairs)


def size_of(graph: HeteroGraph) -> Bucket:
  """The smallest bucket that holds the graph: its real nodes and edges, padding left out."""
  return Bucket(
    tuple(_real_nodes(graph, name) for name in graph.schema.node_types),
    tuple(int(graph.edges[name].indptr[-1]) for name in graph.schema.edge_types),
  )


def pad(
  graph: HeteroGraph, num_nodes: Mapping[str, int], num_edges: Mapping[EdgeType, int]
) -> HeteroGraph:
  """Pads every node set and edge set to its capacity and builds `incoming` of the summed capacity.

  Padded nodes have mask False, label -1, id 0, features 0, are in no split and have no edges;
  padded edges stand past the last real one and are ignored by every operation. A graph that is
  padded already is padded anew from its real part.

  Args:
    graph: on the host.
    num_nodes: {type: capacity}; a type that is not named gets what it needs.
    num_edges: {edge type: capacity}; likewise.
  Raises:
    InputError: a capacity is smaller than what it has to hold, or names no type of the graph.
  """
  size = size_of(graph)
  counts = dict(zip(graph.schema.node_types, size.num_nodes))
  rows = _capacities("node type", counts, num_nodes)
  places = _capacities("edge type", dict(zip(graph.schema.edge_types, size.num_edges)), num_edges)
  nodes, edges = {}, {}
  for name, node_set in graph.nodes.items():
    fit = lambda x, fill, name=name: _fit(x, counts[name], rows[name], fill)
    nodes[name] = node_set.replace(
      ids=fit(node_set.ids, 0),
      mask=fit(node_set.mask, False),
      features=fit(node_set.features, 0),
      labels=fit(node_set.labels, -1),
    )
  for name, edge_set in graph.edges.items():
    source, _, target = name
    count = int(edge_set.indptr[-1])
    fit = lambda x, name=name, count=count: _fit(x, count, places[name], 0)
    edges[name] = edge_set.replace(
      senders=fit(edge_set.senders),
      receivers=fit(edge_set.receivers),
      sender_order=fit(edge_set.sender_order),
      features=fit(edge_set.features),
      # A padded row begins and ends where the real edges end: it has none.
      indptr=_fit(edge_set.indptr, counts[target] + 1, rows[target] + 1, count),
      sender_indptr=_fit(edge_set.sender_indptr, counts[source] + 1, rows[source] + 1, count),
    )
  target = graph.schema.target
  splits = {
    name: _fit(mask, counts[target], rows[target], False) for name, mask in graph.splits.items()
  }
  padded = graph.replace(nodes=nodes, edges=edges, splits=splits, incoming=None)
  return padded.with_incoming(capacity=sum(places.values()))


def pad_to(graph: HeteroGraph, bucket: Bucket) -> HeteroGraph:
  """`pad` to a bucket's capacities."""
  return pad(
    graph,
    dict(zip(graph.schema.node_types, bucket.num_nodes, strict=True)),
    dict(zip(graph.schema.edge_types, bucket.num_edges, strict=True)),
  )


def bucket_ladder(
  graph_sizes: Iterable[HeteroGraph | Bucket],
  max_buckets: int = 4,
  *,
  slack: float = 0.25,
  multiple: int = 8,
) -> tuple[Bucket, ...]:
  """At most `max_buckets` capacities, each holding the one before, from a few sample graphs.

  The samples are ordered by relative size (mean over types of size / largest size) and cut into
  `max_buckets` groups of equal count; rung k holds the elementwise maximum of groups 0..k times
  1 + slack, rounded up to a multiple of `multiple`. So the top rung holds every sample with room to
  spare. No search: the same samples give the same ladder.

  Args:
    graph_sizes: sample graphs, or what `size_of` says of them; of one schema.
    max_buckets: the most shapes a run compiles.
    slack: headroom over the largest size seen, 0 or more.
    multiple: capacities are multiples of it; a type that no sample has gets one multiple, not none.
  Raises:
    InputError: no samples, samples of different schemas, or arguments out of range.
  """
  samples = [item if isinstance(item, Bucket) else size_of(item) for item in graph_sizes]
  if not samples:
    raise InputError("bucket_ladder needs the size of at least one graph")
  if max_buckets < 1 or slack < 0 or multiple < 1:
    raise InputError(
      f"bucket_ladder got max_buckets={max_buckets}, slack={slack}, multiple={multiple}: give at "
      "least 1, 0 and 1"
    )
  types = len(samples[0].num_nodes)
  if len({(len(size.num_nodes), len(size.num_edges)) for size in samples}) > 1:
    raise InputError("bucket_ladder got sizes of different schemas: one ladder serves one schema")
  table = np.array([size.num_nodes + size.num_edges for size in samples], float)
  order = np.argsort((table / np.maximum(table.max(0), 1)).mean(1), kind="stable")
  ladder = []
  for rung in range(1, max_buckets + 1):
    held = order[: math.ceil(rung * len(order) / max_buckets)]
    room = np.maximum(np.ceil(table[held].max(0) * (1 + slack) / multiple), 1) * multiple
    capacity = tuple(int(size) for size in room)
    bucket = Bucket(capacity[:types], capacity[types:])
    if bucket not in ladder:
      ladder.append(bucket)
  return tuple(ladder)


def choose_bucket(ladder: Sequence[Bucket], graph: HeteroGraph) -> Bucket:
  """The first (smallest) bucket that holds the graph.

  Raises:
    InputError: not even the last one does; names the type, its size and the capacity.
  """
  size = size_of(graph)
  for bucket in ladder:
    if bucket.holds(size):
      return bucket
  names = (*graph.schema.node_types, *graph.schema.edge_types)
  last = ladder[-1].num_nodes + ladder[-1].num_edges
  overflows = zip(names, last, size.num_nodes + size.num_edges)
  name, capacity, needed = next(found for found in overflows if found[2] > found[1])
  raise InputError(
    f"{name!r} needs {needed} places, the largest bucket has {capacity}: build the ladder from "
    "more samples, with more slack, or sample less"
  )


def padded_share(graph: HeteroGraph) -> float:
  """Share of node rows and edge places, counted together, that is padding."""
  total = graph.node_offsets[-1] + sum(len(edges.senders) for edges in graph.edges.values())
  return 1.0 - size_of(graph).total / total if total else 0.0


def _real_nodes(graph: HeteroGraph, name: str) -> int:
  mask = np.asarray(graph.nodes[name].mask)
  return len(mask) - int(mask[::-1].argmax()) if mask.any() else 0


def _capacities(what: str, needed: dict, given: Mapping) -> dict:
  for name, capacity in given.items():
    if name not in needed:
      raise InputError(
        f"capacity for unknown {what} {name!r}: the graph has {', '.join(map(repr, needed))}"
      )
    if capacity < needed[name]:
      raise InputError(
        f"{what} {name!r}: capacity {capacity} is smaller than the {needed[name]} it has to hold"
      )
  return {name: int(given.get(name, size)) for name, size in needed.items()}


def _fit(x, count: int, size: int, fill):
  if x is None:
    return None
  x = np.asarray(x)
  out = np.full((size, *x.shape[1:]), fill, x.dtype)
  out[:count] = x[:count]
  return out
