"""Samplers: from a few seed nodes to a small graph around them, in NumPy, on the host.

Plan: a sampler walks edges backwards, from receiver to sender, so it reads the rows `indptr` /
`senders` that every `EdgeSet` has. Which nodes of a type are known already stands in one persistent
int32 table per type (-1 for all nodes between calls); a call writes and erases only the entries
that it touches. So a batch costs what it looks at, whatever the size of the graph; no Python loop
runs over nodes or edges, only over relations, node types and hops. What is read once is kept: with
a bound on the neighbours, the edges that gave budgets are those that the subgraph is cut from.

A graph's relations are directed and messages flow from sender to receiver: only what can send to a
sampled node is ever sampled. Add reverses first (`HeteroGraph.with_reverses`) to walk both ways.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import threading

import numpy as np

from h2g.errors import InputError
from h2g.graph import rows as csr
from h2g.graph.budgets import Budget
from h2g.graph.graph import EdgeSet
from h2g.graph.graph import EdgeType
from h2g.graph.graph import HeteroGraph
from h2g.graph.graph import NodeSet
from h2g.graph.mapped import Maps
from h2g.ops.edge import indptr_of

UNSEEN = -1  # in a lookup table; k >= 0: sampled, local row k
TOGETHER = 1 << 21  # edges up to which several relations are read at once


class Sampler:
  """A graph made ready for sampling; build it once, then sample many batches.

  Calls are pure functions of their arguments. The lookup tables are private to each thread and are
  not pickled, so one sampler can serve the threads or processes of a loader.

  Args of the constructor:
    graph: arrays on the host (device arrays are copied once).
  """

  def __init__(self, graph: HeteroGraph):
    self.graph = graph
    # In schema order, whatever the order of the dictionary: randomness is drawn in this order.
    relations = {name: graph.edges[name] for name in graph.schema.edge_types}
    self._edges = {
      name: [
        np.asarray(array)
        for array in (
          edges.indptr,
          edges.senders,
          edges.sender_indptr,
          edges.sender_order,
          edges.receivers,
        )
      ]
      for name, edges in relations.items()
    }
    self._edge_features = {
      name: None if edges.features is None else np.asarray(edges.features)
      for name, edges in relations.items()
    }
    self._node_fields = {
      name: {
        field: None if array is None else np.asarray(array)
        for field, array in (
          ("ids", nodes.ids),
          ("features", nodes.features),
          ("labels", nodes.labels),
        )
      }
      for name, nodes in graph.nodes.items()
    }
    self._splits = {name: np.asarray(mask) for name, mask in graph.splits.items()}
    fields = [array for fields in self._node_fields.values() for array in fields.values()]
    edges = [array for arrays in self._edges.values() for array in arrays]
    self._maps = Maps([*fields, *edges, *self._edge_features.values()])
    self._local = threading.local()  # tables and budgets of each thread

  def __reduce__(self):
    return Sampler, (self.graph,)

  def hgt(
    self,
    seeds,
    fanouts: Sequence[int] | Mapping[str, Sequence[int]],
    rng: np.random.Generator,
    *,
    max_neighbors: int | None = None,
  ) -> HeteroGraph:
    """HGT sampling: nodes of every type drawn by how strongly the sample so far leans on them.

    A node that joins the sample (the seeds first) adds, for each relation r into it with d > 0
    edges, 1/d per edge to the budget of that edge's sender, unless the sender is in the sample
    already. Iteration l draws fanouts[t][l] nodes of type t without replacement, each draw with
    probability proportional to the squared budget; all types of an iteration are drawn before any
    budget changes. The subgraph keeps all edges among sampled nodes.

    Draws are exact, not approximations that miss nodes with small budgets (`h2g.graph.budgets`).

    Args:
      seeds: [S] distinct rows of the target type.
      fanouts: nodes per iteration, for every type alike or {type: ...}; one not named gets none.
      rng: NumPy generator; the only source of randomness, advanced by the call.
      max_neighbors: where a node has more edges in a relation, a uniform choice of so many stands
        for them, made once: in the budgets (each 1/max_neighbors) and in the subgraph. The code of
        PyG fixes 50 and chooses anew for the subgraph; the default takes all, as the paper writes.
    Returns:
      HeteroGraph, host arrays, `incoming` None. Rows of the target type begin with the seeds in the
      order given; `ids` are the parent's; features, labels and splits are gathered.
    Raises:
      InputError: seeds repeat, are none or are out of range; fan-outs name no type or are negative.
    Source: arXiv 2003.01332 algorithm 1 and 2.
    """
    schema = self.graph.schema
    seeds = self._checked_seeds(seeds)
    draws = per_key("node type", fanouts, schema.node_types, least=0)
    if max_neighbors is not None and max_neighbors < 1:
      raise InputError(f"max_neighbors is {max_neighbors}: give 1 or more, or None for all")
    with self._tables() as tables:
      fresh = {schema.target: tables.add(schema.target, seeds)}
      kept = {name: [] for name in schema.edge_types}  # edges into the sample, if they are bounded
      budgets = tables.budgets()
      for step in range(max(map(len, draws.values()), default=0)):
        for name, row, position, share in self._read(fresh, tables, max_neighbors, rng):
          senders = self._edges[name][1][position]
          budgets[name[0]].add(senders, share)
          if max_neighbors is not None:
            kept[name].append((row, position, senders))
          self._maps.trim()
        fresh = {}
        for name in schema.node_types:
          drawn = budgets[name].draw(draws[name][step], tables.rows(name), rng)
          fresh[name] = tables.add(name, drawn)
      if max_neighbors is None:
        return self._induced(tables)
      for name, row, position, _ in self._read(fresh, tables, max_neighbors, rng):
        kept[name].append((row, position, self._edges[name][1][position]))
      # Iterations append receivers in the order of their local rows: these are in receiver order.
      joined = {name: _joined(parts, 3) for name, parts in kept.items()}
      return self._subgraph(
        tables, {name: _inside(tables.lookup[name[0]], *parts) for name, parts in joined.items()}
      )

  def neighbor(
    self,
    seeds,
    fanouts: Sequence[int] | Mapping[EdgeType, Sequence[int]],
    rng: np.random.Generator,
    *,
    induced: bool = False,
  ) -> HeteroGraph:
    """Neighbour sampling: hop by hop, a few incoming edges per newly found node and relation.

    A node that is first reached in hop l - 1 (the seeds: hop 0) takes, for each relation r into it,
    a uniform choice of min(fanouts[r][l], d) of its d edges without replacement, in hop l only.

    Args:
      seeds: [S] distinct rows of the target type.
      fanouts: edges per hop, for every relation alike or {edge type: ...}; -1 takes all; one not
        named gets none.
      rng: NumPy generator; the only source of randomness, advanced by the call.
      induced: keep all edges among the sampled nodes instead of the sampled edges only.
    Returns:
      As `hgt`.
    Raises:
      InputError: as `hgt`.
    Source: arXiv 1706.02216 algorithm 2, per relation.
    """
    schema = self.graph.schema
    seeds = self._checked_seeds(seeds)
    takes = per_key("edge type", fanouts, schema.edge_types, least=-1)
    with self._tables() as tables:
      fresh = {schema.target: tables.add(schema.target, seeds)}
      kept = {name: [] for name in schema.edge_types}
      for hop in range(max(map(len, takes.values()), default=0)):
        starts = {name: tables.count(name) for name in schema.node_types}
        begin = {name: starts[name] - len(fresh.get(name, ())) for name in schema.node_types}
        for name in schema.edge_types:
          source, _, target = name
          if not len(fresh.get(target, ())):
            continue
          indptr, senders, *_ = self._edges[name]
          most = None if takes[name][hop] < 0 else takes[name][hop]
          row, position = csr.entries(*csr.bounds(indptr, fresh[target]), most, rng)
          found = senders[position]
          kept[name].append((row + begin[target], position, found))
          table = tables.lookup[source]
          tables.add(source, csr.distinct(found[table[found] == UNSEEN], table))
        fresh = {name: tables.rows(name)[starts[name] :] for name in schema.node_types}
      if induced:
        return self._induced(tables)
      # Hops append receivers in the order of their local rows: these are in receiver order.
      joined = {name: _joined(parts, 3) for name, parts in kept.items()}
      return self._subgraph(
        tables,
        {
          name: (row, position, tables.lookup[name[0]][senders])
          for name, (row, position, senders) in joined.items()
        },
      )

  def _read(self, fresh, tables, most, rng):
    """Yields (edge type, local row, position, share) of the edges into what was sampled last.

    Rows and positions ascend; share is 1 / (edges that are read of the row). Many short relations
    are read as one list of rows, in as many calls of NumPy as one of them.
    """
    names = [name for name in self._edges if len(fresh.get(name[2], ()))]
    starts, counts = {}, {}
    for name in names:
      starts[name], counts[name] = csr.bounds(self._edges[name][0], fresh[name[2]])
    read = {
      name: int((counts[name] if most is None else np.minimum(counts[name], most)).sum())
      for name in names
    }
    while names:
      group = names[: max(1, int(np.searchsorted(np.cumsum([read[n] for n in names]), TOGETHER)))]
      names = names[len(group) :]
      count = np.concatenate([counts[name] for name in group])
      start = np.concatenate([starts[name] for name in group])
      row, position = csr.entries(start, count, most, rng)
      share = (1.0 / np.maximum(count if most is None else np.minimum(count, most), 1))[row]
      first = begin = 0
      for name in group:
        end = begin + read[name]
        local = row[begin:end] + (tables.count(name[2]) - len(fresh[name[2]]) - first)
        yield name, local, position[begin:end], share[begin:end]
        first, begin = first + len(counts[name]), end

  def _induced(self, tables) -> HeteroGraph:
    """All edges among sampled nodes."""
    found = {}
    for name, (indptr, senders, sender_indptr, sender_order, receivers) in self._edges.items():
      source, _, target = name
      heads = csr.bounds(indptr, tables.rows(target))
      tails = csr.bounds(sender_indptr, tables.rows(source))
      if 2 * tails[1].sum() < heads[1].sum():
        # Fewer edges leave the sampled senders than enter the sampled receivers (hubs): look there.
        sender, position = csr.ranges(*tails)
        position = sender_order[position].astype(np.int64)
        row, position, sender = _inside(
          tables.lookup[target], sender, position, receivers[position], swap=True
        )
        order = np.argsort(row * len(senders) + position)
        found[name] = row[order], position[order], sender[order]
      else:
        row, position = csr.ranges(*heads)
        found[name] = _inside(tables.lookup[source], row, position, senders[position])
      self._maps.trim()  # a hub's edges lie all over the relation
    return self._subgraph(tables, found)

  def _subgraph(self, tables, found) -> HeteroGraph:
    """Gathers {edge type: (local receiver, ascending; position in the parent; local sender)}."""
    nodes, edges = {}, {}
    for name, fields in self._node_fields.items():
      rows = tables.rows(name)
      gathered = {
        field: None if array is None else array.take(rows, axis=0)
        for field, array in fields.items()
      }
      nodes[name] = NodeSet(mask=np.ones(len(rows), bool), **gathered)
    for name, (receivers, position, senders) in found.items():
      source, _, target = name
      features = self._edge_features[name]
      edges[name] = EdgeSet(
        senders=senders.astype(np.int32),
        receivers=receivers.astype(np.int32),
        indptr=indptr_of(receivers, tables.count(target)),
        sender_indptr=indptr_of(senders, tables.count(source)),
        sender_order=csr.argsort(senders, tables.count(source)),
        features=None if features is None else features.take(position, axis=0),
      )
    rows = tables.rows(self.graph.schema.target)
    splits = {name: mask[rows] for name, mask in self._splits.items()}
    self._maps.trim()
    return HeteroGraph(nodes, edges, splits, None, self.graph.schema)

  def _tables(self) -> "_Tables":
    return _Tables(self.graph.num_nodes, self._local)

  def _checked_seeds(self, seeds) -> np.ndarray:
    target = self.graph.schema.target
    bound = self.graph.num_nodes[target]
    seeds = np.asarray(seeds)
    if seeds.ndim != 1 or not seeds.size or not np.issubdtype(seeds.dtype, np.integer):
      raise InputError(
        f"seeds are {seeds.dtype}{list(seeds.shape)}: give at least one row of {target!r}, "
        "integers [S]"
      )
    if seeds.min() < 0 or seeds.max() >= bound:
      at = int(np.flatnonzero((seeds < 0) | (seeds >= bound))[0])
      raise InputError(f"seed {at} is {seeds[at]}, outside the rows 0..{bound - 1} of {target!r}")
    values, counts = np.unique(seeds, return_counts=True)
    if len(values) < len(seeds):
      raise InputError(
        f"seed {values[counts.argmax()]} stands {counts.max()} times among the seeds: "
        "give each once"
      )
    return seeds.astype(np.int64)


def hgt_sample(
  graph: HeteroGraph | Sampler, seeds, fanouts, rng: np.random.Generator, **options
) -> HeteroGraph:
  """`Sampler.hgt` for one call; for many, build the `Sampler` once."""
  sampler = graph if isinstance(graph, Sampler) else Sampler(graph)
  return sampler.hgt(seeds, fanouts, rng, **options)


def neighbor_sample(
  graph: HeteroGraph | Sampler, seeds, fanouts, rng: np.random.Generator, **options
) -> HeteroGraph:
  """`Sampler.neighbor` for one call; for many, build the `Sampler` once."""
  sampler = graph if isinstance(graph, Sampler) else Sampler(graph)
  return sampler.neighbor(seeds, fanouts, rng, **options)


class _Tables:
  """Which nodes are in the sample of one call.

  Its memory is the thread's: given back clean, or given up if the call fails half way.
  """

  def __init__(self, num_nodes: Mapping[str, int], local: threading.local):
    self._local = local
    if not hasattr(local, "lookup"):
      local.lookup = {name: np.full(count, UNSEEN, np.int32) for name, count in num_nodes.items()}
    self._num_nodes = num_nodes
    self._parts = {name: [] for name in num_nodes}
    self._counts = dict.fromkeys(num_nodes, 0)

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    if kind is not None:
      self._local.__dict__.clear()
      return
    for name, table in self.lookup.items():
      table[self.rows(name)] = UNSEEN
    for budget in getattr(self._local, "budgets", {}).values():
      budget.clear()

  @property
  def lookup(self) -> dict[str, np.ndarray]:
    """{type: [N] local row of each node of the parent, or UNSEEN}."""
    return self._local.lookup

  def budgets(self) -> dict[str, Budget]:
    """{type: an empty budget}."""
    if not hasattr(self._local, "budgets"):
      self._local.budgets = {name: Budget(count) for name, count in self._num_nodes.items()}
    return self._local.budgets

  def add(self, name: str, rows: np.ndarray) -> np.ndarray:
    """Gives parent rows, each new, the next local rows; returns them."""
    self.lookup[name][rows] = np.arange(self._counts[name], self._counts[name] + len(rows))
    self._parts[name].append(rows)
    self._counts[name] += len(rows)
    return rows

  def count(self, name: str) -> int:
    return self._counts[name]

  def rows(self, name: str) -> np.ndarray:
    """[n] parent rows of the sample, in local order."""
    if len(self._parts[name]) != 1:
      self._parts[name] = [np.concatenate([np.zeros(0, np.int64), *self._parts[name]])]
    return self._parts[name][0]


def _joined(parts, width: int) -> tuple[np.ndarray, ...]:
  """Columns of a list of tuples, each one array."""
  return tuple(map(np.concatenate, zip(*parts))) if parts else (np.zeros(0, np.int64),) * width


def _inside(table, row, position, others, *, swap: bool = False):
  """Of edges (row, position) to `others`, those whose other end is in the sample, and its row."""
  local = table[others]
  keep = np.flatnonzero(local >= 0)
  row, position, local = row[keep], position[keep], local[keep].astype(np.int64)
  return (local, position, row) if swap else (row, position, local)


def per_key(what: str, fanouts, keys, *, least: int) -> dict:
  """{key: [count per step]} for all keys, from one list or a mapping that may leave keys out."""
  if not isinstance(fanouts, Mapping):
    fanouts = {key: fanouts for key in keys}
  unknown = [key for key in fanouts if key not in keys]
  if unknown:
    raise InputError(
      f"fan-out for unknown {what} {unknown[0]!r}: the graph has {', '.join(map(repr, keys))}"
    )
  counts = {key: [int(count) for count in np.ravel(given)] for key, given in fanouts.items()}
  steps = {len(given) for given in counts.values()}
  if len(steps) > 1:
    raise InputError(f"fan-outs have {sorted(steps)} steps: give every {what} as many")
  for key, given in counts.items():
    if min(given, default=0) < least:
      raise InputError(f"fan-out {min(given)} of {what} {key!r}: give {least} or more")
  return {key: counts.get(key, [0] * max(steps, default=0)) for key in keys}
