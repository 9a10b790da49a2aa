"""Views of a graph: other graphs made from it once, on the host, so that no model builds graphs.

A metapath here is a walk of two relations that starts and ends at the target type. The graph it
induces joins u to v wherever at least one such walk leads from u to v, once, u != v.

Every view keeps the target's rows, features, labels and splits.
"""

import dataclasses
import functools

import numpy as np

from h2g.errors import InputError
from h2g.graph.graph import EdgeType
from h2g.graph.graph import HeteroGraph
from h2g.graph.graph import NodeSet
from h2g.graph.graph import Schema
from h2g.graph.homophily import metapaths

HOPS = ("2hop", "3hop", "4hop")  # middle names of the relations that `with_strict_hops` adds
STRICT = HOPS[0]
MAX_EDGES = 1 << 28  # of an induced graph
PIECE = 1 << 22  # walks listed at a time


def view(graph: HeteroGraph, name: str, *, max_edges: int = 0) -> HeteroGraph:
  """The view of that name: see VIEWS; "" is the graph as it is.

  Args:
    graph: with reverses, where they are wanted.
    name: of VIEWS.
    max_edges: a view with more is refused; 0 allows what fits.
  Raises:
    InputError: unknown name, or the view would be empty or too large.
  """
  if name not in VIEWS:
    raise InputError(f"view={name!r} is unknown: choose from {', '.join(map(repr, VIEWS))}")

  def refuse(count: int, words: str) -> None:
    if name and max_edges and count > max_edges:
      raise InputError(
        f"view={name!r} has {words}{count:,} edges, more than config.data.max_edges={max_edges:,}: "
        "raise it, or sample the graph"
      )

  if max_edges and name in ("2hop", "strict_2hop"):
    refuse(_around_the_busiest(graph), "at least ")  # at once, where building takes minutes
  seen = VIEWS[name](graph)
  refuse(sum(int(edges.indptr[-1]) for edges in seen.edges.values()), "")
  return seen


def _around_the_busiest(graph: HeteroGraph) -> int:
  """How many pairs of target nodes the one node joins, of any type, that joins most."""
  most = 0
  for middle, there, back in _halves(graph, metapaths(graph.schema)):
    count = graph.num_nodes[middle]
    arrive, leave = (np.bincount(ids, minlength=count) for ids in (there[1], back[0]))
    most = max(most, int((arrive * leave - np.minimum(arrive, leave)).max(initial=0)))
  return most


def _halves(graph: HeteroGraph, paths):
  """(type, pairs there, pairs back) of each type that the paths lead through, each pair once.

  All relations there, then all relations back: one join per type, not per metapath.
  """
  for middle in dict.fromkeys(first[2] for first, _ in paths):
    through = [path for path in paths if path[0][2] == middle]
    yield middle, *(_unique_pairs(graph, {path[side] for path in through}) for side in (0, 1))


def one_hop(graph: HeteroGraph) -> HeteroGraph:
  """Only target nodes, with the relations that join them directly (H2GB's `+1Hop`)."""
  target = graph.schema.target
  given = graph._given_edges()
  edges = {name: given[name] for name in given if (name[0], name[2]) == (target, target)}
  if not edges:
    raise InputError(f"view='1hop' is empty: no relation joins {target} to {target}; try '2hop'")
  return _only_target(graph, edges)


def two_hops(graph: HeteroGraph) -> HeteroGraph:
  """Only target nodes, joined where any metapath joins them (H2GB's `+2Hop`): one relation."""
  target, count = graph.schema.target, graph.num_nodes[graph.schema.target]
  codes = np.zeros(0, np.int64)
  for middle, there, back in _halves(graph, _paths(graph)):
    joined = _join(*there, *back, count, f"{target} to {middle} and back")
    codes = np.union1d(codes, joined[joined % count != joined // count])
  return _only_target(graph, {(target, STRICT, target): (codes % count, codes // count)})


def induced(graph: HeteroGraph) -> HeteroGraph:
  """Only target nodes, one relation per metapath there and back, and the direct ones (for HAN).

  There and back: the second relation is the first one turned round (paper - author - paper). Where
  no metapath is of that kind, every metapath is taken.
  """
  target = graph.schema.target
  paths = _paths(graph)
  back = [path for path in paths if _turned(graph, *path)] or paths
  edges = {}
  for first, second in back:
    edges[target, f"{first[1]}>{first[2]}>{second[1]}", target] = compose(graph, first, second)
  for name in graph.schema.edge_types:
    if (name[0], name[2]) == (target, target):
      edges[name] = _pairs(graph, name)
  return _only_target(graph, edges)


def with_strict_hops(graph: HeteroGraph, hops: int) -> HeteroGraph:
  """The graph, and (s, "2hop", t), ... (s, "`hops`hop", t) from each type s to each type t:
  neighbours at exactly that distance.

  Distance is counted on the homogenised graph along its directed relations: distance two is u -> m
  -> v for some m, u != v, and no edge u -> v. Add reverses first. For H2GCN, and for attention with
  a bias per hop.
  """
  offsets, total = graph.node_offsets, graph.node_offsets[-1]
  starts = {name: graph.rows(name)[0] for name in graph.schema.node_types}
  senders, receivers = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
  for name in graph.schema.edge_types:
    pair = _pairs(graph, name)
    senders.append(pair[0].astype(np.int64) + starts[name[0]])
    receivers.append(pair[1].astype(np.int64) + starts[name[2]])
  nearer = np.unique(np.concatenate(receivers) * total + np.concatenate(senders))
  one = last = nearer[nearer % total != nearer // total]
  edges = graph._given_edges()
  for hop in HOPS[: hops - 1]:
    last = _join(last % total, last // total, one % total, one // total, total, f"{hop}s")
    last = np.setdiff1d(last, nearer, assume_unique=True)
    last = last[last % total != last // total]
    nearer = np.union1d(nearer, last)
    of_sender = np.searchsorted(offsets, last % total, side="right") - 1
    of_receiver = np.searchsorted(offsets, last // total, side="right") - 1
    for s, source in enumerate(graph.schema.node_types):
      for t, target in enumerate(graph.schema.node_types):
        at = last[(of_sender == s) & (of_receiver == t)]
        edges[source, hop, target] = (at % total - offsets[s], at // total - offsets[t])
  place = graph.schema.node_types.index
  return graph._rebuild({name: edges[name] for name in sorted(edges, key=lambda e: place(e[0]))})


def relation_hops(schema: Schema) -> tuple[int, ...]:
  """The distance that each relation spans: 2, 3, ... for those of `with_strict_hops`, else 1."""
  return tuple(HOPS.index(name) + 2 if name in HOPS else 1 for _, name, _ in schema.edge_types)


def with_virtual_nodes(graph: HeteroGraph, count: int, *, prefix: str = "virtual_") -> HeteroGraph:
  """The graph, and `count` nodes of a new type per node type, joined both ways to all its nodes.

  Their features are the rows of an identity, so that an encoder's map holds one learned vector for
  each. Padded nodes are not joined. (The official code joins virtual nodes along every relation.)
  Source: arXiv 2407.10916 section 4; Gilmer et al. 2017 section 5.2.
  """
  nodes, edges, schema = dict(graph.nodes), graph._given_edges(), graph.schema
  for name in schema.node_types:
    new, rows = prefix + name, np.flatnonzero(np.asarray(graph.nodes[name].mask))
    nodes[new] = NodeSet(
      np.arange(count, dtype=np.int32), np.ones(count, bool), np.eye(count, dtype=np.float32), None
    )
    virtual, real = np.repeat(np.arange(count), len(rows)), np.tile(rows, count)
    edges[new, "spreads", name], edges[name, "gathers", new] = (virtual, real), (real, virtual)
  types = (*schema.node_types, *(prefix + name for name in schema.node_types))
  dims = (*schema.feature_dims, *[count] * len(schema.node_types))
  schema = dataclasses.replace(schema, node_types=types, feature_dims=dims)
  edges = {name: edges[name] for name in sorted(edges, key=lambda e: types.index(e[0]))}
  return graph.replace(nodes=nodes, schema=schema)._rebuild(edges)


def compose(graph: HeteroGraph, first: EdgeType, second: EdgeType) -> tuple[np.ndarray, np.ndarray]:
  """(senders, receivers) of the graph that the walk first, second induces: pairs once, u != v.

  Raises:
    InputError: the walks are too many to be listed; the message names the metapath.
  """
  a, b = _pairs(graph, first), _pairs(graph, second)
  count = graph.num_nodes[first[0]]
  codes = _join(*a, *b, count, f"{first} then {second}")
  senders, receivers = codes % count, codes // count
  keep = senders != receivers if first[0] == second[2] else np.ones(len(codes), bool)
  return senders[keep], receivers[keep]


VIEWS = {
  "": lambda graph: graph,
  "1hop": one_hop,
  "2hop": two_hops,
  "metapaths": induced,
  "strict_2hop": functools.partial(with_strict_hops, hops=2),
  "strict_3hop": functools.partial(with_strict_hops, hops=3),
}


def _join(senders, middles, middles_2, receivers, num_senders: int, what: str) -> np.ndarray:
  """Sorted, unique receiver * num_senders + sender of every walk u -> m -> v.

  Both lists meet at the middle: each edge of the second is repeated once per edge of the first that
  ends where it starts. Receivers are taken in pieces, so that memory stays near the result's size.
  """
  order = np.argsort(middles, kind="stable")
  senders, middles = np.asarray(senders, np.int64)[order], np.asarray(middles)[order]
  by_receiver = np.argsort(receivers, kind="stable")
  middles_2 = np.asarray(middles_2)[by_receiver]
  receivers = np.asarray(receivers, np.int64)[by_receiver]
  begin = np.searchsorted(middles, middles_2, side="left")
  fan = np.searchsorted(middles, middles_2, side="right") - begin
  walks = np.cumsum(fan)
  if len(walks) == 0 or walks[-1] == 0:
    return np.zeros(0, np.int64)
  if walks[-1] > 64 * MAX_EDGES:
    raise InputError(f"{what} makes {walks[-1]} walks: too many to list; sample the graph first")
  found, total = [], 0
  piece = np.searchsorted(walks, np.arange(0, walks[-1], PIECE), side="left")
  for at, end in zip(piece, [*piece[1:], len(fan)]):
    size = fan[at:end]
    start = np.repeat(begin[at:end] - (np.cumsum(size) - size), size)
    reached = senders[start + np.arange(size.sum())]
    found.append(np.unique(np.repeat(receivers[at:end], size) * num_senders + reached))
    total += len(found[-1])
    if total > MAX_EDGES:
      raise InputError(f"{what} joins more than {MAX_EDGES} pairs: sample the graph first")
  return np.unique(np.concatenate(found))


def _pairs(graph: HeteroGraph, name: EdgeType) -> tuple[np.ndarray, np.ndarray]:
  edges = graph.edges[name]
  count = int(edges.indptr[-1])  # what follows is padding
  return np.asarray(edges.senders)[:count], np.asarray(edges.receivers)[:count]


def _unique_pairs(graph: HeteroGraph, names: set[EdgeType]) -> tuple[np.ndarray, np.ndarray]:
  """(senders, receivers) of several relations between the same two types, each pair once."""
  senders, receivers = np.concatenate([_pairs(graph, name) for name in names], axis=1)
  width = int(senders.max(initial=0)) + 1
  codes = np.unique(receivers.astype(np.int64) * width + senders)
  return codes % width, codes // width


def _paths(graph: HeteroGraph):
  paths = metapaths(graph.schema)
  if not paths:
    raise InputError(
      f"no walk of two relations leads from {graph.schema.target} to {graph.schema.target}: add "
      "reverses (config.data.reverses)"
    )
  return paths


def _turned(graph: HeteroGraph, first: EdgeType, second: EdgeType) -> bool:
  """Whether the second relation is the first one, every edge turned round."""
  (a, b), (c, d) = _pairs(graph, first), _pairs(graph, second)
  same = first[0] == second[2] and len(a) == len(c)
  return same and bool(
    (np.stack([a, b])[:, np.lexsort((b, a))] == np.stack([d, c])[:, np.lexsort((c, d))]).all()
  )


def _only_target(graph: HeteroGraph, edges) -> HeteroGraph:
  target = graph.schema.target
  schema = dataclasses.replace(
    graph.schema,
    node_types=(target,),
    feature_dims=(graph.schema.feature_dims[graph.schema.node_types.index(target)],),
  )
  alone = graph.replace(nodes={target: graph.nodes[target]}, schema=schema)
  return alone._rebuild(edges)
