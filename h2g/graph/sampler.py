"""Samplers: from a few seed nodes to a small graph around them, in NumPy, on the host.

Plan: a sampler walks edges backwards, from receiver to sender, so it reads the rows `indptr` /
`senders` that every `EdgeSet` has. Which nodes of a type are known already stands in one persistent
int32 table per type (-1 for all nodes between calls); a call writes and erases only the entries
that it touches. So a batch costs what it looks at, whatever the size of the graph; no Python loop
runs over nodes or edges, only over relations, node types and hops.

A graph's relations are directed and messages flow from sender to receiver: only what can send to a
sampled node is ever sampled. Add reverses first (`HeteroGraph.with_reverses`) to walk both ways.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import threading

import numpy as np

from h2g.errors import InputError
from h2g.graph.graph import EdgeSet
from h2g.graph.graph import EdgeType
from h2g.graph.graph import HeteroGraph
from h2g.graph.graph import NodeSet
from h2g.graph.mapped import Maps

UNSEEN = -1  # in a lookup table; k >= 0 is "sampled, local row k", -2 - k is "candidate number k"


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
    self._local = threading.local()

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

    Draws are exact: with independent exponentials e_i, the n smallest e_i / budget_i^2 are
    distributed as n successive draws without replacement.

    Args:
      seeds: [S] distinct rows of the target type.
      fanouts: nodes per iteration, for every type alike or {type: ...}; one not named gets none.
      rng: NumPy generator; the only source of randomness, advanced by the call.
      max_neighbors: where a node has more edges in a relation, a uniform choice of so many stands
        for them, in the budgets (each 1/max_neighbors) and in the subgraph. The code of PyG fixes
        50; the default takes all, as the paper writes.
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
    with _Tables(self) as tables:
      fresh = {schema.target: tables.add(schema.target, seeds)}
      budgets = {name: _Budget() for name in schema.node_types}
      for step in range(max(map(len, draws.values()), default=0)):
        for name in schema.edge_types:
          if len(fresh.get(name[2], ())):
            budget = budgets[name[0]]
            self._lean(name, fresh[name[2]], tables.lookup[name[0]], budget, max_neighbors, rng)
            self._maps.trim()
        fresh = {}
        for name in schema.node_types:
          drawn = budgets[name].draw(draws[name][step], rng)
          fresh[name] = tables.add(name, drawn)
        tables.candidates = {name: budget.ids for name, budget in budgets.items()}
      return self._induced(tables, max_neighbors, rng)

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
    with _Tables(self) as tables:
      fresh = {schema.target: tables.add(schema.target, seeds)}
      kept = {name: ([], []) for name in schema.edge_types}
      for hop in range(max(map(len, takes.values()), default=0)):
        starts = {name: tables.count(name) for name in schema.node_types}
        begin = {name: starts[name] - len(fresh.get(name, ())) for name in schema.node_types}
        for name in schema.edge_types:
          source, _, target = name
          if not len(fresh.get(target, ())):
            continue
          indptr, senders, *_ = self._edges[name]
          row, position = _rows_of(indptr, fresh[target], takes[name][hop], rng)
          kept[name][0].append(row + begin[target])
          kept[name][1].append(position)
          found = senders[position]
          table = tables.lookup[source]
          tables.add(source, _distinct(found[table[found] == UNSEEN], table))
        fresh = {name: tables.since(name, starts[name]) for name in schema.node_types}
      if induced:
        return self._induced(tables, None, rng)
      # Hops append receivers in the order of their local rows, so these are in receiver order.
      empty = np.zeros(0, np.int64)
      found = {
        name: tuple(np.concatenate([empty, *part]) for part in parts)
        for name, parts in kept.items()
      }
      return self._subgraph(tables, found)

  def _lean(self, name, fresh, table, budget, most, rng):
    """Adds what the newly sampled receivers of one relation lean on to their senders' budget."""
    indptr, senders, *_ = self._edges[name]
    row, position = _rows_of(indptr, fresh, -1 if most is None else most, rng)
    degree = np.bincount(row, minlength=len(fresh))
    share = (1.0 / np.maximum(degree, 1))[row]
    found = senders[position]
    code = table[found]
    outside = code < 0
    found, share, code = found[outside], share[outside], code[outside]
    new = _distinct(found[code == UNSEEN], table)
    table[new] = -2 - np.arange(budget.count, budget.count + len(new))
    budget.add(new, -2 - table[found], share)

  def _induced(self, tables, most, rng) -> HeteroGraph:
    """All edges among sampled nodes."""
    found = {}
    for name, (indptr, senders, sender_indptr, sender_order, receivers) in self._edges.items():
      source, _, target = name
      heads, tails = tables.rows(target), tables.rows(source)
      if most is None and 2 * _degrees(sender_indptr, tails).sum() < _degrees(indptr, heads).sum():
        # Fewer edges leave the sampled senders than enter the sampled receivers (hubs): look there.
        _, position = _rows_of(sender_indptr, tails, -1, rng)
        position = sender_order[position]
        row = tables.lookup[target][receivers[position]]
        row, position = row[row >= 0].astype(np.int64), position[row >= 0]
        order = np.argsort(row * len(senders) + position)
        found[name] = row[order], position[order]
      else:
        row, position = _rows_of(indptr, heads, -1 if most is None else most, rng)
        inside = tables.lookup[source][senders[position]] >= 0
        found[name] = row[inside], position[inside]
      self._maps.trim()  # a hub's edges lie all over the relation
    return self._subgraph(tables, found)

  def _subgraph(self, tables, found) -> HeteroGraph:
    """Gathers: {edge type: (local receiver, ascending; position of the edge in the parent)}."""
    nodes, edges = {}, {}
    for name, fields in self._node_fields.items():
      rows = tables.rows(name)
      gathered = {
        field: None if array is None else array.take(rows, axis=0)
        for field, array in fields.items()
      }
      nodes[name] = NodeSet(mask=np.ones(len(rows), bool), **gathered)
    for name, (row, position) in found.items():
      source, _, target = name
      senders = tables.lookup[source][self._edges[name][1][position]]
      features = self._edge_features[name]
      edges[name] = EdgeSet(
        senders=senders,
        receivers=row.astype(np.int32),
        indptr=_indptr(row, tables.count(target)),
        sender_indptr=_indptr(senders, tables.count(source)),
        sender_order=_argsort(senders, tables.count(source)),
        features=None if features is None else features.take(position, axis=0),
      )
    rows = tables.rows(self.graph.schema.target)
    splits = {name: mask[rows] for name, mask in self._splits.items()}
    self._maps.trim()
    return HeteroGraph(nodes, edges, splits, None, self.graph.schema)

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
  """The lookup tables during one call, erased at its end, and the parent rows of the sample."""

  def __init__(self, sampler: Sampler):
    local = sampler._local
    if not hasattr(local, "lookup"):
      local.lookup = {
        name: np.full(count, UNSEEN, np.int32) for name, count in sampler.graph.num_nodes.items()
      }
    self.lookup = local.lookup
    self.parts = {name: [] for name in self.lookup}
    self.counts = dict.fromkeys(self.lookup, 0)
    self.candidates = {}

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    for name, table in self.lookup.items():
      if kind is not None:  # interrupted half way: what was touched is unknown
        table[:] = UNSEEN
      table[self.rows(name)] = UNSEEN
      table[self.candidates.get(name, slice(0))] = UNSEEN

  def add(self, name: str, rows: np.ndarray) -> np.ndarray:
    self.lookup[name][rows] = np.arange(self.counts[name], self.counts[name] + len(rows))
    self.parts[name].append(rows)
    self.counts[name] += len(rows)
    return rows

  def count(self, name: str) -> int:
    return self.counts[name]

  def rows(self, name: str) -> np.ndarray:
    """[n] parent rows of the sample, in local order."""
    if len(self.parts[name]) != 1:
      self.parts[name] = [np.concatenate([np.zeros(0, np.int64), *self.parts[name]])]
    return self.parts[name][0]

  def since(self, name: str, start: int) -> np.ndarray:
    return self.rows(name)[start:]


class _Budget:
  """Candidates of one node type: parent row and budget; a drawn one stays, with budget 0."""

  def __init__(self):
    self.ids, self.value = np.zeros(0, np.int64), np.zeros(0)

  @property
  def count(self) -> int:
    return len(self.ids)

  def add(self, new: np.ndarray, number: np.ndarray, share: np.ndarray):
    """Appends the candidates `new`, then adds share[i] to candidate number[i]."""
    self.ids = np.concatenate([self.ids, new])
    value = np.bincount(number, share, minlength=self.count).astype(float)  # of nothing: integers
    value[: len(self.value)] += self.value
    self.value = value

  def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
    left = np.flatnonzero(self.value)
    if len(left) > count:
      late = rng.standard_exponential(len(left)) / np.square(self.value[left])
      left = left[np.argpartition(late, count)[:count]] if count else left[:0]
    self.value[left] = 0
    return np.sort(self.ids[left])  # in the order of the parent: rows are read with better locality


def _degrees(indptr, rows) -> np.ndarray:
  return indptr[rows + 1] - indptr[rows]


def _rows_of(indptr, rows, most: int, rng) -> tuple[np.ndarray, np.ndarray]:
  """(i, position) of the entries of CSR rows[i], i ascending; `most` at most, -1: all."""
  counts = _degrees(indptr, rows).astype(np.int64)
  if most < 0 or not (counts > most).any():
    return _ranges(indptr[rows], counts)
  row, offset = _choose(counts, most, rng)
  return row, indptr[rows].astype(np.int64)[row] + offset


def _ranges(starts, counts) -> tuple[np.ndarray, np.ndarray]:
  """(i, starts[i] + j) for j < counts[i], i and j ascending."""
  row = np.repeat(np.arange(len(counts)), counts)
  ends = np.cumsum(counts)
  position = np.arange(len(row)) + (starts - ends + counts)[row]
  return row, position


def _choose(counts, most: int, rng) -> tuple[np.ndarray, np.ndarray]:
  """(i, offset): a uniform choice of min(most, counts[i]) of range(counts[i]), sorted."""
  some = (counts > most) & (counts <= 4 * most)
  many = counts > 4 * most
  parts = []
  whole = np.flatnonzero(counts <= most)
  row, offset = _ranges(np.zeros(len(whole), np.int64), counts[whole])
  parts.append((whole[row], offset))
  rows = np.flatnonzero(some)
  if len(rows):  # the `most` smallest of random keys
    row, offset = _ranges(np.zeros(len(rows), np.int64), counts[rows])
    order = np.lexsort((rng.random(len(row)), row))
    first = (np.cumsum(counts[rows]) - counts[rows])[row]
    chosen = order[np.arange(len(row)) - first < most]
    parts.append((rows[row[chosen]], offset[chosen]))
  rows = np.flatnonzero(many)
  if len(rows) and most:  # the first `most` distinct of independent draws; few rounds, few repeat
    width = int(counts[rows].max())
    missing, chosen = np.full(len(rows), most), np.zeros(0, np.int64)
    while missing.any():
      row = np.repeat(np.arange(len(rows)), missing)
      fresh = row * width + rng.integers(0, counts[rows][row])
      chosen = np.unique(np.concatenate([chosen, fresh]))
      missing = most - np.bincount(chosen // width, minlength=len(rows))
    parts.append((rows[chosen // width], chosen % width))
  row, offset = (np.concatenate(part) for part in zip(*parts))
  order = np.argsort(row * (int(counts.max(initial=0)) + 1) + offset)
  return row[order], offset[order]


def _distinct(rows: np.ndarray, table: np.ndarray) -> np.ndarray:
  """Each value once, in the order of one of its places. Leaves marks in `table`: overwrite them."""
  marks = np.arange(len(rows), dtype=table.dtype)
  table[rows] = marks
  return rows[table[rows] == marks].astype(np.int64)


def _indptr(ids: np.ndarray, num: int) -> np.ndarray:
  indptr = np.zeros(num + 1, np.int32)
  np.cumsum(np.bincount(ids, minlength=num), out=indptr[1:])
  return indptr


def _argsort(ids: np.ndarray, bound: int) -> np.ndarray:
  if bound <= 1 << 16:  # NumPy sorts 16-bit integers by radix, several times faster
    ids = ids.astype(np.uint16)
  return np.argsort(ids, kind="stable").astype(np.int32)


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
