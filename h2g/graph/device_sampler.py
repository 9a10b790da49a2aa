"""Neighbour sampling on the device: a pure function, so that a step can draw its own subgraph.

Plan: the whole graph (CSR, features, labels) stays on the device; every shape follows from the
fan-outs. The rows of a node type are blocks, one per hop: the nodes that were first reached in it,
padding behind them in the block. An edge slot (row of a block, relation, draw) stands where its
receiver stands, so slots read in row order are sorted by receiver already, for one relation and for
all together; only the padding among them is squeezed out. Reading by sender, for gradients, takes a
sort, and so does telling which of the nodes just found are known: both of arrays as long as the
sample, whatever the size of the graph.

HGT sampling is not here: its budgets count all edges of a node and its subgraph keeps all edges
among the sampled nodes, so that neither has a bound from which a shape could follow; it stays on
the host (`h2g.graph.sampler`).
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from h2g.graph.graph import EdgeSet
from h2g.graph.graph import EdgeType
from h2g.graph.graph import HeteroGraph
from h2g.graph.graph import NodeSet
from h2g.graph.sampler import per_key
from h2g.ops.edge import EdgeIndex

NOBODY = np.int32(2**31 - 1)  # sorts behind every node

Fanouts = Sequence[int] | Mapping[EdgeType, Sequence[int]]


class _Slots(NamedTuple):
  """What one relation gave the nodes of one block: F draws for each of its R rows.

  relation: its number. begin: first row of the block, among those of the target type.
  position, real: [R, F] place of the edge in the parent, whether there is one.
  senders: [R, F] local row of the sender.
  """

  relation: int
  begin: int
  position: Array
  real: Array
  senders: Array


def sample_neighbors(
  graph: HeteroGraph,
  seeds: Array,
  fanouts: Fanouts,
  key: Array,
  *,
  gather: Callable[[Array, Array], Array] | None = None,
) -> HeteroGraph:
  """Neighbour sampling, hop by hop; draws from the distribution of `Sampler.neighbor`.

  A node that is first reached in hop l - 1 (the seeds: hop 0) takes, for each relation r into it,
  min(fanouts[r][l], d) of its d edges, every such subset alike, independently of all other nodes
  and relations, in hop l only. A node found several times is one row. (Floyd's algorithm, exact but
  for the division of 2**32 random numbers into d parts, which differ by one at most.)

  To be traced (`jax.jit`), also under `jax.vmap` over seeds and key.

  Args:
    graph: the whole graph, on the device; padded edges are never drawn. `incoming` is not read.
    seeds: [S] int32 distinct rows of the target type; -1 stands for none.
    fanouts: edges per hop, for every relation alike or {edge type: ...}, static; one not named gets
      none. All edges of a node (-1 on the host) have no static number: give the largest degree.
    key: PRNG key.
    gather: `(table [N_t, ...], ids [n]) -> rows [n, ...]` of features; None indexes. For a table
      over several devices, see `h2g.graph.sharded_features`.
  Returns:
    HeteroGraph with `incoming`. Rows of the target type begin with the seeds as given; a padded row
    (mask False, id 0, label -1, features 0, in no split) has no edges and stands behind the rows of
    its hop. Its shapes are those of `block_sizes`.
  Raises:
    InputError: fan-outs name no relation or are negative.
  Source: arXiv 1706.02216 algorithm 2, per relation; Bentley and Floyd, CACM 30(9), 1987.
  """
  schema = graph.schema
  takes = per_key("edge type", fanouts, schema.edge_types, least=0)
  sizes = block_sizes(graph, seeds.shape[0], fanouts)
  graph = jax.tree.map(jnp.asarray, graph.replace(incoming=None))
  gather = gather or (lambda table, ids: table[ids])
  ids = {name: jnp.zeros(0, jnp.int32) for name in schema.node_types}
  ids[schema.target] = seeds.astype(jnp.int32)
  slots: list[_Slots] = []
  for hop in range(max(map(len, takes.values()), default=0)):
    active = [
      (r, name)
      for r, name in enumerate(schema.edge_types)
      if takes[name][hop] and sizes[name[2]][hop] and graph.edges[name].senders.shape[0]
    ]
    if not active:
      break
    # One call of the generator per hop: it costs more to compile than all the rest.
    ends = np.cumsum([sizes[name[2]][hop] * takes[name][hop] for _, name in active])
    bits = jax.random.bits(jax.random.fold_in(key, hop), (int(ends[-1]),))
    drawn, found = [], []
    for (r, name), part in zip(active, jnp.split(bits, ends[:-1])):
      edges, begin = graph.edges[name], sum(sizes[name[2]][:hop])
      fresh = ids[name[2]][begin : begin + sizes[name[2]][hop]]
      position, real = _draw(edges.indptr, fresh, part.reshape(-1, fresh.shape[0]))
      drawn.append((r, begin, position, real))
      found.append((name[0], jnp.where(real, edges.senders[position], -1)))
    room = {name: sizes[name][hop + 1] for name in schema.node_types}
    rows, ids = _number(graph, ids, found, room)
    slots += [_Slots(*part, row) for part, row in zip(drawn, rows)]

  nodes, splits = {}, {}
  for name in schema.node_types:
    mask, rows = ids[name] >= 0, jnp.maximum(ids[name], 0)
    parent = graph.nodes[name]
    pick = lambda x, fill, mask=mask, rows=rows: (
      None if x is None else jnp.where(mask, x[rows], fill)
    )
    features = None if parent.features is None else gather(parent.features, rows)
    if features is not None:
      features = jnp.where(mask[:, None], features, 0)
    labels = pick(parent.labels, -1)
    nodes[name] = NodeSet(pick(parent.ids, 0), mask, features, labels)
    if name == schema.target:
      splits = {split: pick(member, False) for split, member in graph.splits.items()}
  return _with_edges(HeteroGraph(nodes, {}, splits, None, schema), slots, graph)


def block_sizes(graph: HeteroGraph, num_seeds: int, fanouts: Fanouts) -> dict[str, tuple[int, ...]]:
  """{node type: rows per hop, the seeds' hop first} of `sample_neighbors`: static, no draw is lost.

  A hop finds at most one node per draw, and at most all nodes there are.
  """
  schema = graph.schema
  takes = per_key("edge type", fanouts, schema.edge_types, least=0)
  sizes = {name: [num_seeds if name == schema.target else 0] for name in schema.node_types}
  for hop in range(max(map(len, takes.values()), default=0)):
    found = dict.fromkeys(schema.node_types, 0)
    for name in schema.edge_types:
      found[name[0]] += sizes[name[2]][hop] * takes[name][hop]
    for name in schema.node_types:
      sizes[name].append(min(found[name], graph.num_nodes[name]))
  return {name: tuple(rows) for name, rows in sizes.items()}


def tightened(graph: HeteroGraph, fanouts: Fanouts) -> dict[EdgeType, tuple[int, ...]]:
  """Fan-outs without the draws that no node has edges for: the same samples, smaller shapes.

  Args:
    graph: on the host; the largest in-degree of each relation bounds its fan-outs, and -1 becomes
      that degree.
    fanouts: as of `Sampler.neighbor`.
  """
  takes = per_key("edge type", fanouts, graph.schema.edge_types, least=-1)
  bounded = {}
  for name, counts in takes.items():
    most = int(np.diff(np.asarray(graph.edges[name].indptr)).max(initial=0))
    bounded[name] = tuple(most if count < 0 else min(count, most) for count in counts)
  return bounded


def _draw(indptr: Array, rows: Array, bits: Array) -> tuple[Array, Array]:
  """(position, real), both [R, F]: for each CSR row a uniform subset of its entries.

  bits: [F, R] uint32, random.
  """
  count = bits.shape[0]
  safe = jnp.maximum(rows, 0)
  begin = indptr[safe]
  degree = jnp.where(rows >= 0, indptr[safe + 1] - begin, 0)
  every = jnp.arange(count, dtype=jnp.int32)[:, None]
  # Floyd: the i-th draw is from 0..degree - count + i; what was drawn before becomes the last of
  # them. Where there are no more entries than draws, each draw is an entry.
  last = jnp.maximum(degree, count)[None] - count + every
  drawn = _below(bits, last + 1)

  def draw(i, chosen):
    again = (chosen == drawn[i][None]).any(0)  # what is not chosen yet is -1, which equals no draw
    return chosen.at[i].set(jnp.where(again, last[i], drawn[i]))

  chosen = jax.lax.fori_loop(0, count, draw, jnp.full(drawn.shape, -1, jnp.int32))
  offset = jnp.where(degree[None] > count, chosen, every)
  real = every < degree[None]
  return jnp.where(real, begin[None] + offset, 0).T, real.T


def _below(bits: Array, bound: Array) -> Array:
  """floor(bits * bound / 2**32), int32: uniform in 0..bound - 1 where bits are."""
  bound = bound.astype(jnp.uint32)
  low = bits & 0xFFFF
  high = bits >> 16
  middle = high * (bound & 0xFFFF) + ((low * (bound & 0xFFFF)) >> 16)
  top = high * (bound >> 16) + (middle >> 16)
  return (top + ((low * (bound >> 16) + (middle & 0xFFFF)) >> 16)).astype(jnp.int32)


def _number(
  graph: HeteroGraph,
  known: dict[str, Array],
  found: list[tuple[str, Array]],
  room: dict[str, int],
) -> tuple[list[Array], dict[str, Array]]:
  """Local rows of the nodes found, and `known` with a block behind it of those that are new.

  Args:
    known: {type: parent rows of local rows 0, 1, ..., -1 padding}.
    found: (type, parent rows or -1) of each array.
    room: {type: length of the new block}, which is enough.
  """
  names = graph.schema.node_types
  offset = dict(zip(names, graph.node_offsets))
  count = {name: known[name].shape[0] for name in names}
  # All types in one sort, as rows of the parent: known nodes first, so that of equal keys the first
  # says the local row, its own or the next free one.
  keys = [(name, known[name]) for name in names] + [(name, x.reshape(-1)) for name, x in found]
  keys = jnp.concatenate([jnp.where(x < 0, NOBODY, x + np.int32(offset[name])) for name, x in keys])
  places = jnp.arange(keys.shape[0], dtype=jnp.int32)
  own = np.concatenate([np.arange(count[name], dtype=np.int32) for name in names])
  keys, place = jax.lax.sort((keys, places), num_keys=1, is_stable=True)
  first = jnp.concatenate([jnp.ones(1, bool), keys[1:] != keys[:-1]])
  new = first & (place >= len(own)) & (keys < NOBODY)
  number = jnp.cumsum(new, dtype=jnp.int32)
  # A known row, or -1 - k for the k-th new node of all types (k from 1).
  code = jnp.where(new, -1 - number, jnp.asarray(own)[jnp.minimum(place, len(own) - 1)])
  code = code[jax.lax.cummax(jnp.where(first, places, 0))]
  code = jnp.zeros_like(code).at[place].set(code, unique_indices=True)[len(own) :]
  # New nodes of one type stand together, as their keys do.
  bounds = jnp.searchsorted(keys, jnp.asarray(graph.node_offsets, jnp.int32))
  before = jnp.concatenate([jnp.zeros(1, jnp.int32), number])[bounds]
  base = dict(zip(names, before))
  rows = []
  for (name, x), part in zip(found, jnp.split(code, np.cumsum([x.size for _, x in found])[:-1])):
    row = jnp.where(part < 0, count[name] - 2 - part - base[name], part)
    rows.append(row.reshape(x.shape))
  at = _squeeze(number, jnp.concatenate([_count(base[name], room[name]) for name in names]))
  fresh = jnp.split(keys[at], np.cumsum([room[name] for name in names])[:-1])
  grown = {}
  for name, part, total in zip(names, fresh, jnp.diff(before)):
    part = jnp.where(jnp.arange(room[name]) < total, part - np.int32(offset[name]), -1)
    grown[name] = jnp.concatenate([known[name], part])
  return rows, grown


def _count(base: Array, length: int) -> Array:
  return base + jnp.arange(1, length + 1, dtype=jnp.int32)


def _squeeze(number: Array, wanted: Array) -> Array:
  """Places where the running count `number` reaches the wanted counts (1: the first counted)."""
  return jnp.minimum(jnp.searchsorted(number, wanted), number.shape[0] - 1)


def _with_edges(sampled: HeteroGraph, slots: list[_Slots], parent: HeteroGraph) -> HeteroGraph:
  """The edges of each relation and of all: slots in two orders, without those that are not real.

  First relation after relation, in each by receiver; then by receiver, at each relation after
  relation. Blocks are in the order of their rows, so both are known before anything is drawn.
  """
  schema = sampled.schema
  slots = sorted(slots, key=lambda slot: (slot.relation, slot.begin))
  draws = [0] * len(schema.edge_types)
  for slot in slots:
    draws[slot.relation] += slot.real.size
  lengths = [
    min(count, parent.edges[name].senders.shape[0]) for count, name in zip(draws, schema.edge_types)
  ]
  starts = np.cumsum([0, *lengths])
  if not starts[-1]:
    return _without_edges(sampled, parent)
  flat = lambda parts: jnp.concatenate([x.reshape(-1) for x in parts])
  shape = [slot.real.shape for slot in slots]
  local = [slot.begin + np.repeat(np.arange(n), f) for slot, (n, f) in zip(slots, shape)]
  relation = np.repeat([slot.relation for slot in slots], [slot.real.size for slot in slots])
  local = np.concatenate(local).astype(np.int32)
  first = np.array([sampled.rows(name[2])[0] for name in schema.edge_types], np.int32)
  messages = np.array(sampled.message_offsets, np.int32)
  real, senders = flat([slot.real for slot in slots]), flat([slot.senders for slot in slots])

  # By relation.
  number = jnp.cumsum(real, dtype=jnp.int32)
  ends = jnp.concatenate([jnp.zeros(1, jnp.int32), number])[np.cumsum([0, *draws])]
  counts = jnp.diff(ends)
  at = _squeeze(number, jnp.concatenate([_count(e, n) for e, n in zip(ends, lengths)]))
  used = jnp.concatenate([jnp.arange(n) < c for c, n in zip(counts, lengths)])
  pick = lambda x, used, at: jnp.where(used, x[at], 0)
  by_relation = [pick(x, used, at) for x in (senders, jnp.asarray(local))]
  position = pick(flat([slot.position for slot in slots]), used, at)

  # By receiver.
  order = np.lexsort((relation, first[relation] + local)).astype(np.int32)
  order = jnp.asarray(order)
  row = jnp.asarray(first[relation] + local)[order]
  mixed = jnp.cumsum(real[order], dtype=jnp.int32)
  capacity = int(starts[-1])
  at = _squeeze(mixed, _count(jnp.int32(0), capacity))
  used = jnp.arange(capacity) < mixed[-1]
  ids = number - 1 - ends[relation] + starts[relation].astype(np.int32)
  degrees = [_degrees(sampled, r, slots) for r in range(len(schema.edge_types))]
  into = {name: jnp.zeros(count, jnp.int32) for name, count in sampled.num_nodes.items()}
  for name, degree in zip(schema.edge_types, degrees):
    into[name[2]] = into[name[2]] + degree
  into = jnp.concatenate([into[name] for name in schema.node_types])
  index = EdgeIndex(
    indptr=jnp.cumulative_sum(into, include_initial=True),
    senders=pick(senders + messages[relation], used, order[at]),
    receivers=pick(row, used, at),
    sender_indptr=None,
    sender_order=None,
    edge_ids=pick(ids, used, order[at]),
  )
  keys = jnp.where(used, index.senders, NOBODY)
  places = jnp.arange(capacity, dtype=jnp.int32)
  _, sender_order = jax.lax.sort((keys, places), num_keys=1, is_stable=True)
  width = jnp.zeros(messages[-1], jnp.int32).at[index.senders].add(used.astype(jnp.int32))
  index = index._replace(
    sender_indptr=jnp.cumulative_sum(width, include_initial=True),
    sender_order=jnp.where(used, sender_order, 0),
  )

  # Of one relation, the senders' order is a piece of that of all.
  ranked = jnp.concatenate([index.edge_ids[sender_order], jnp.zeros(max(lengths), jnp.int32)])
  edges = {}
  for r, name in enumerate(schema.edge_types):
    piece = slice(starts[r], starts[r + 1])
    indptr = index.sender_indptr[messages[r] : messages[r + 1] + 1]
    mine = jax.lax.dynamic_slice(ranked, indptr[:1], (lengths[r],)) - np.int32(starts[r])
    real = jnp.arange(lengths[r]) < counts[r]
    features = parent.edges[name].features
    if features is not None:
      features = jnp.where(real[:, None], features[position[piece]], 0)
    edges[name] = EdgeSet(
      *(x[piece] for x in by_relation),
      jnp.cumulative_sum(degrees[r], include_initial=True),
      indptr - indptr[:1],
      jnp.where(real, mine, 0),
      features,
    )
  return sampled.replace(edges=edges, incoming=index)


def _without_edges(sampled: HeteroGraph, parent: HeteroGraph) -> HeteroGraph:
  none, zeros = jnp.zeros(0, jnp.int32), lambda count: jnp.zeros(count + 1, jnp.int32)
  edges = {}
  for name in sampled.schema.edge_types:
    features = parent.edges[name].features
    sizes = [zeros(sampled.num_nodes[end]) for end in (name[2], name[0])]
    edges[name] = EdgeSet(none, none, *sizes, none, None if features is None else features[:0])
  sizes = zeros(sampled.node_offsets[-1]), zeros(sampled.message_offsets[-1])
  index = EdgeIndex(sizes[0], none, none, sizes[1], none, none)
  return sampled.replace(edges=edges, incoming=index)


def _degrees(sampled: HeteroGraph, relation: int, slots: list[_Slots]) -> Array:
  """[N_target] edges of a relation into each row: blocks are in row order, none between them."""
  parts, done = [jnp.zeros(0, jnp.int32)], 0
  for slot in slots:
    if slot.relation == relation:
      parts += [jnp.zeros(slot.begin - done, jnp.int32), slot.real.sum(1, dtype=jnp.int32)]
      done = slot.begin + slot.real.shape[0]
  total = sampled.num_nodes[sampled.schema.edge_types[relation][2]]
  return jnp.concatenate([*parts, jnp.zeros(total - done, jnp.int32)])
