"""HeteroGraph: typed node sets and edge sets as one immutable pytree.

Axes: N_t nodes of type t, E_r edges of relation r, F features, C classes; N all nodes, M message
rows, E all edges. Node rows of all types stand one after another in `schema.node_types` order.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from h2g.errors import InputError
from h2g.ops.edge import build_edge_index
from h2g.ops.edge import EdgeIndex

EdgeType = tuple[str, str, str]


@dataclasses.dataclass(frozen=True)
class Schema:
  """What is static about a graph: hashable, equal for a graph and its samples.

  Attributes:
    node_types: names, in the order of the node rows.
    edge_types: (source, relation, target), in the order of the message rows.
    target: the node type that carries the labels.
    num_classes: C.
    feature_dims: width per node type, 0 for a featureless type.
    edge_feature_dims: width per edge type, 0 without features.
    class_names: C names.
  """

  node_types: tuple[str, ...]
  edge_types: tuple[EdgeType, ...]
  target: str
  num_classes: int
  feature_dims: tuple[int, ...]
  edge_feature_dims: tuple[int, ...]
  class_names: tuple[str, ...]

  @functools.cached_property
  def source_runs(self) -> tuple[tuple[str, int, int], ...]:
    """(source, begin, end): relations begin:end stand together and have one source type.

    What acts on message rows is one operation per run, not per relation; `with_reverses` orders the
    relations so that there are as few runs as node types.
    """
    runs = []
    for at, (source, _, _) in enumerate(self.edge_types):
      if runs and runs[-1][0] == source:
        runs[-1] = (source, runs[-1][1], at + 1)
      else:
        runs.append((source, at, at + 1))
    return tuple(runs)


class _Replace:
  def replace(self, **changes):
    """A copy with some fields changed."""
    return dataclasses.replace(self, **changes)


def _pytree(*, static: tuple[str, ...] = ()):
  def register(cls):
    cls = dataclasses.dataclass(frozen=True)(cls)
    arrays = [field.name for field in dataclasses.fields(cls) if field.name not in static]
    return jax.tree_util.register_dataclass(cls, arrays, list(static))

  return register


@_pytree()
class NodeSet(_Replace):
  """Nodes of one type.

  Attributes:
    ids: [N_t] int32 row of each node in the parent graph (the whole graph: 0..N_t - 1).
    mask: [N_t] bool, False for padding.
    features: [N_t, F] float32 or None.
    labels: [N_t] int32, -1 unlabelled; None for types that are not the target.
  """

  ids: Array
  mask: Array
  features: Array | None = None
  labels: Array | None = None


@_pytree()
class EdgeSet(_Replace):
  """Edges of one relation in receiver order; the conventions are those of `EdgeIndex`.

  Attributes:
    senders, receivers: [E_r] int32 local rows of the source and target type.
    indptr: [N_target + 1]; sender_indptr: [N_source + 1]; sender_order: [E_r].
    features: [E_r, F] float32 or None, in receiver order.
  """

  senders: Array
  receivers: Array
  indptr: Array
  sender_indptr: Array
  sender_order: Array
  features: Array | None = None


@_pytree(static=("schema", "typed_messages"))
class HeteroGraph(_Replace):
  """A heterogeneous graph.

  Attributes:
    nodes: {type: NodeSet}.
    edges: {(source, relation, target): EdgeSet}.
    splits: {name: [N_target] bool}, for instance train, val, test.
    incoming: EdgeIndex over all relations (see `with_incoming`), or None.
    schema: static.
    typed_messages: static; whether relations have message rows of their own (see `with_incoming`).
  """

  nodes: dict[str, NodeSet]
  edges: dict[EdgeType, EdgeSet]
  splits: dict[str, Array]
  incoming: EdgeIndex | None
  schema: Schema
  typed_messages: bool = True

  @classmethod
  def from_arrays(
    cls,
    *,
    nodes: Mapping[str, Mapping[str, Any]],
    edges: Mapping[EdgeType, Any],
    target: str,
    num_classes: int | None = None,
    class_names: tuple[str, ...] | None = None,
    splits: Mapping[str, Any] | None = None,
  ) -> "HeteroGraph":
    """Builds and validates a graph from plain arrays.

    Args:
      nodes: {type: {"features": [N_t, F], "labels": [N_t] integers (-1 unlabelled), "num_nodes":
        int}}, each optional as long as the number of nodes follows from one of them.
      edges: {(source, relation, target): [2, E] array, or (senders, receivers), or (senders,
        receivers, features [E, F] or [E])}.
      target: node type that carries the labels.
      num_classes: by default the largest label + 1.
      class_names: by default "0", "1", ...
      splits: {name: [N_target] bool}.
    Raises:
      InputError: names the node or edge type, the position, the value and its bound.
    """
    node_sets = {str(name): _node_set(str(name), fields) for name, fields in nodes.items()}
    if target not in node_sets:
      raise InputError(f"target {target!r} is no node type: the graph has {', '.join(node_sets)}")
    labels = node_sets[target].labels
    if labels is None:
      labels = np.full(len(node_sets[target].ids), -1, np.int32)
      node_sets[target] = node_sets[target].replace(labels=labels)
    if num_classes is None:
      num_classes = len(class_names) if class_names else int(labels.max(initial=-1)) + 1
    _check_labels(target, labels, num_classes)
    class_names = tuple(class_names) if class_names else tuple(str(c) for c in range(num_classes))
    if len(class_names) != num_classes:
      raise InputError(f"{len(class_names)} class names for {num_classes} classes: give one each")
    edge_sets = {tuple(name): _edge_set(name, given, node_sets) for name, given in edges.items()}
    schema = Schema(
      node_types=tuple(node_sets),
      edge_types=tuple(edge_sets),
      target=target,
      num_classes=num_classes,
      feature_dims=tuple(_width(nodes.features) for nodes in node_sets.values()),
      edge_feature_dims=tuple(_width(edges.features) for edges in edge_sets.values()),
      class_names=class_names,
    )
    graph = cls(node_sets, edge_sets, {}, None, schema)
    return graph.with_splits(splits or {})

  # Sizes and rows; all static, from shapes.

  @functools.cached_property
  def num_nodes(self) -> dict[str, int]:
    """{type: rows}, padding included."""
    return {name: self.nodes[name].ids.shape[-1] for name in self.schema.node_types}

  @functools.cached_property
  def node_offsets(self) -> tuple[int, ...]:
    """Rows node_offsets[t]:node_offsets[t + 1] belong to node type t."""
    return _offsets(self.num_nodes[name] for name in self.schema.node_types)

  @functools.cached_property
  def message_offsets(self) -> tuple[int, ...]:
    """Message rows of relation r: one per source node, relation after relation.

    Raises:
      InputError: the relations share their rows.
    """
    if not self.typed_messages:
      raise InputError("relations cannot be told apart: build this graph by with_incoming()")
    return _offsets(self.num_nodes[source] for source, _, _ in self.schema.edge_types)

  def rows(self, node_type: str) -> tuple[int, int]:
    """(begin, end) of a node type's rows."""
    at = self.schema.node_types.index(node_type)
    return self.node_offsets[at], self.node_offsets[at + 1]

  @property
  def target_rows(self) -> tuple[int, int]:
    """(begin, end) of the target type's rows."""
    return self.rows(self.schema.target)

  @property
  def row_mask(self) -> Array:
    """[N] bool, False for padded rows."""
    return jnp.concatenate([self.nodes[name].mask for name in self.schema.node_types])

  @property
  def target_labels(self) -> Array:
    """[N_target] int32, -1 unlabelled."""
    return self.nodes[self.schema.target].labels

  def by_type(self, x: Array) -> dict[str, Array]:
    """{node type: its rows of x [N, ...]}.

    By one split: were each type sliced out, the gradient would add up one array of N rows a slice.
    """
    return dict(zip(self.schema.node_types, jnp.split(x, self.node_offsets[1:-1])))

  def message_rows(self, x: Array) -> Array:
    """[M, ...] from node rows x [N, ...]: per relation, the rows of its source type.

    x itself where relations share their rows.
    """
    if not self.typed_messages:
      return x
    rows, parts = [], self.by_type(x)
    for source, begin, end in self.schema.source_runs:
      rows.append(jnp.tile(parts[source], (end - begin, *[1] * (x.ndim - 1))))
    return jnp.concatenate(rows) if rows else x[:0]

  # Changed copies.

  def with_incoming(self, *, capacity: int | None = None, typed: bool = True) -> "HeteroGraph":
    """Adds `incoming`: all relations as one EdgeIndex from message rows to node rows.

    Edges are numbered relation after relation (`edge_ids`), each in its receiver order. Runs on the
    host.

    Args:
      capacity: pads the edge arrays.
      typed: False makes the node rows the message rows, for models that do not tell relations
        apart: no row is copied per relation.
    """
    runs = [self.rows(source) for source, _, _ in self.schema.edge_types]
    starts = _offsets(end - begin for begin, end in runs) if typed else [begin for begin, _ in runs]
    senders, receivers = [], []
    for start, name in zip(starts, self.schema.edge_types):
      edges = self.edges[name]
      count = int(edges.indptr[-1])  # what follows is padding
      senders.append(np.asarray(edges.senders[:count]) + start)
      receivers.append(np.asarray(edges.receivers[:count]) + self.rows(name[2])[0])
    empty = np.zeros(0, np.int64)
    index = build_edge_index(
      np.concatenate([empty, *senders]),
      np.concatenate([empty, *receivers]),
      starts[-1] if typed else self.node_offsets[-1],
      self.node_offsets[-1],
      capacity=capacity,
    )
    # Padded edge sets leave gaps in the numbering of the concatenated edges.
    counts = [int(self.edges[name].indptr[-1]) for name in self.schema.edge_types]
    sizes = [self.edges[name].senders.shape[0] for name in self.schema.edge_types]
    if counts != sizes:
      place = [np.arange(c) + start for c, start in zip(counts, _offsets(sizes))]
      ids = np.concatenate([empty, *place]).astype(np.int32)[index.edge_ids[: sum(counts)]]
      index = index._replace(edge_ids=np.pad(ids, (0, len(index.edge_ids) - len(ids))))
    return self.replace(incoming=index, typed_messages=typed)

  def with_reverses(self, *, prefix: str = "rev_", skip: tuple[str, ...] = ()) -> "HeteroGraph":
    """Adds (target, prefix + relation, source) for each relation that has no reverse yet.

    Relations end up ordered by source type (see `Schema.source_runs`).

    Args:
      prefix: of the new relation's name.
      skip: relations (middle names) that are listed in both directions already.
    """
    edges = self._given_edges()
    for (source, relation, target), given in list(edges.items()):
      reverse = (target, prefix + relation, source)
      if relation in skip or relation.startswith(prefix) or reverse in edges:
        continue
      edges[reverse] = (given[1], given[0], *given[2:])
    place = self.schema.node_types.index
    return self._rebuild({name: edges[name] for name in sorted(edges, key=lambda e: place(e[0]))})

  def with_edges(self, edge_type: EdgeType, senders, receivers, features=None) -> "HeteroGraph":
    """Adds a relation, or replaces the one of that name; arguments as in `from_arrays`."""
    edges = self._given_edges()
    return self._rebuild(edges | {edge_type: (senders, receivers, features)})

  def with_self_loops(self, *, relation: str = "self") -> "HeteroGraph":
    """Adds (type, relation, type) with one edge from each node to itself; padding gets none."""
    edges = self._given_edges()
    for name in self.schema.node_types:
      rows = np.flatnonzero(np.asarray(self.nodes[name].mask))
      edges[(name, relation, name)] = (rows, rows)
    return self._rebuild(edges)

  def with_splits(self, splits: Mapping[str, Any]) -> "HeteroGraph":
    """Replaces the splits: {name: [N_target] bool}."""
    count = self.num_nodes[self.schema.target]
    checked = {}
    for name, mask in splits.items():
      mask = np.asarray(mask)
      if mask.shape != (count,) or mask.dtype != bool:
        raise InputError(
          f"split {name!r} is {mask.dtype}{list(mask.shape)}: give bool[{count}], one per "
          f"{self.schema.target}"
        )
      checked[name] = mask
    return self.replace(splits=checked)

  def _given_edges(self) -> dict[EdgeType, tuple]:
    # In schema order: a mapped or jitted pytree comes back with its dictionaries sorted by name.
    return {name: _given(self.edges[name]) for name in self.schema.edge_types}

  def _rebuild(self, edges) -> "HeteroGraph":
    edge_sets = {name: _edge_set(name, given, self.nodes) for name, given in edges.items()}
    schema = dataclasses.replace(
      self.schema,
      edge_types=tuple(edge_sets),
      edge_feature_dims=tuple(_width(edges.features) for edges in edge_sets.values()),
    )
    return self.replace(edges=edge_sets, schema=schema, incoming=None, typed_messages=True)

  def summary(self) -> str:
    """A readable table of the node types, relations and labels."""
    lines = [f"{'node type':<16}{'nodes':>10}{'features':>10}"]
    for name, width in zip(self.schema.node_types, self.schema.feature_dims):
      lines.append(f"{name:<16}{self.num_nodes[name]:>10}{width or '-':>10}")
    lines.append(f"\n{'relation':<44}{'edges':>10}{'features':>10}")
    for name, width in zip(self.schema.edge_types, self.schema.edge_feature_dims):
      count = int(self.edges[name].indptr[-1])
      lines.append(f"{' -> '.join(name):<44}{count:>10}{width or '-':>10}")
    labels = np.asarray(self.target_labels)
    counts = np.bincount(labels[labels >= 0], minlength=self.schema.num_classes)
    named = ", ".join(f"{name} {n}" for name, n in zip(self.schema.class_names, counts))
    lines.append(f"\nlabels of {self.schema.target}: {named}, unlabelled {int((labels < 0).sum())}")
    return "\n".join(lines)


def _offsets(sizes) -> tuple[int, ...]:
  return (0, *(int(end) for end in np.cumsum(list(sizes), dtype=np.int64)))


def _width(features) -> int:
  return 0 if features is None else int(features.shape[-1])


def _given(edges: EdgeSet) -> tuple:
  fields = [x for x in (edges.senders, edges.receivers, edges.features) if x is not None]
  return tuple(np.asarray(x)[: int(edges.indptr[-1])] for x in fields)  # what follows is padding


def _finite(what: str, features, rows: int | None) -> np.ndarray:
  features = np.asarray(features)
  if features.ndim == 1:
    features = features[:, None]
  if (
    features.ndim != 2
    or not (np.issubdtype(features.dtype, np.number) or features.dtype == bool)
    or np.iscomplexobj(features)
  ):
    raise InputError(
      f"features of {what} are {features.dtype}{list(features.shape)}: give float [rows, F]"
    )
  if rows is not None and len(features) != rows:
    raise InputError(f"features of {what} have {len(features)} rows, {rows} are expected")
  with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf, and is named below
    features = features.astype(np.float32)
  bad = np.argwhere(~np.isfinite(features))
  if len(bad):
    row, column = bad[0]
    raise InputError(
      f"features of {what} are not finite: row {row}, column {column} is {features[row, column]}"
      f" ({len(bad)} such values); replace or drop them"
    )
  return features


def _node_set(name: str, fields: Mapping[str, Any]) -> NodeSet:
  unknown = set(fields) - {"features", "labels", "num_nodes"}
  if unknown:
    raise InputError(
      f"node type {name!r} has unknown fields {sorted(unknown)}: use features, labels, num_nodes"
    )
  features, labels, count = (fields.get(key) for key in ("features", "labels", "num_nodes"))
  if count is None:
    source = features if features is not None else labels
    if source is None:
      raise InputError(f"node type {name!r} has neither features nor labels: give num_nodes")
    if np.ndim(source) == 0:
      raise InputError(f"node type {name!r} has one value {source!s:.20} for an array: give [N_t]")
    count = len(source)
  if not isinstance(count, (int, np.integer)) or isinstance(count, bool) or count < 0:
    raise InputError(f"num_nodes of node type {name!r} is {count}: give an integer, 0 or more")
  if count >= 2**31:
    raise InputError(f"num_nodes of node type {name!r} is {count}: rows are 32-bit, so below 2**31")
  if features is not None:
    features = _finite(f"node type {name!r}", features, count)
    features = features if features.shape[1] else None
  if labels is not None:
    labels = np.asarray(labels)
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
      raise InputError(
        f"labels of node type {name!r} are {labels.dtype}{list(labels.shape)}: give integers "
        f"[{count}]"
      )
    bad = np.flatnonzero((labels < -(2**31)) | (labels >= 2**31))  # would wrap around below
    if len(bad):
      raise InputError(
        f"label {labels[bad[0]]} of {name!r} node {bad[0]} does not fit into 32 bits: number the "
        "classes from 0 (-1 means unlabelled)"
      )
    labels = labels.astype(np.int32)
  return NodeSet(np.arange(count, dtype=np.int32), np.ones(count, bool), features, labels)


def _check_labels(target: str, labels: np.ndarray, num_classes: int) -> None:
  bad = np.flatnonzero((labels < -1) | (labels >= num_classes))
  if len(bad):
    raise InputError(
      f"label {labels[bad[0]]} of {target!r} node {bad[0]} is outside the classes "
      f"0..{num_classes - 1}"
      " (-1 means unlabelled)"
    )


def _edge_set(name, given, nodes: Mapping[str, NodeSet]) -> EdgeSet:
  if not (
    isinstance(name, tuple) and len(name) == 3 and all(isinstance(part, str) for part in name)
  ):
    raise InputError(f"edge type {name!r} must be (source, relation, target)")
  for end in (name[0], name[2]):
    if end not in nodes:
      raise InputError(
        f"edge type {name} names node type {end!r}; the graph has {', '.join(nodes)}"
      )
  # The third row of an array is no features: an array is [2, E] or a mistake (transposed, say).
  shape = getattr(given, "shape", None)
  if shape is not None and (len(shape) != 2 or shape[0] != 2):
    found = f" are {given.dtype}{list(shape)}"
  else:
    found = "" if hasattr(given, "__len__") and len(given) in (2, 3) else f" are {given!r:.40}"
  if found:
    raise InputError(
      f"edges of {name}{found}: give [2, E], or (senders, receivers), each integers [E], or with "
      "features a third"
    )
  ids = []
  for side, part, end in (("senders", given[0], name[0]), ("receivers", given[1], name[2])):
    part = np.asarray(part)
    if part.size == 0:
      part = part.astype(np.int64).reshape(-1)
    if part.ndim != 1 or not np.issubdtype(part.dtype, np.integer):
      raise InputError(f"{side} of {name} are {part.dtype}{list(part.shape)}: give integers [E]")
    bound = len(nodes[end].ids)
    bad = np.flatnonzero((part < 0) | (part >= bound))
    if len(bad):
      raise InputError(
        f"{side} of {name}: edge {bad[0]} has index {part[bad[0]]}, outside the {bound} nodes of "
        f"type {end!r} (0..{bound - 1})"
      )
    ids.append(part)
  if len(ids[0]) != len(ids[1]):
    raise InputError(f"edges of {name}: {len(ids[0])} senders and {len(ids[1])} receivers")
  features = None
  if len(given) == 3 and given[2] is not None:
    features = _finite(f"edge type {name}", given[2], len(ids[0]))
  index = build_edge_index(*ids, len(nodes[name[0]].ids), len(nodes[name[2]].ids))
  return EdgeSet(
    senders=index.senders,
    receivers=index.receivers,
    indptr=index.indptr,
    sender_indptr=index.sender_indptr,
    sender_order=index.sender_order,
    features=None if features is None else features[index.edge_ids],
  )
