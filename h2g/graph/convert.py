"""Graphs to and from jraph, networkx, and PyG's dictionaries and HeteroData.

All of it runs on the host; networkx and jraph are imported where they are used, torch never. What
is padding is left out on the way.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from h2g.errors import InputError
from h2g.graph.graph import HeteroGraph
from h2g.graph.graph import Schema
from h2g.graph.padding import pad
from h2g.graph.padding import padded_share


def to_jraph(graph: HeteroGraph):
  """The homogenised graph as one `jraph.GraphsTuple`.

  Node rows of all types stand one after another in schema order (`graph.node_offsets`), edges
  relation after relation in receiver order.

  Returns:
    GraphsTuple of one graph.
    nodes: {"type": [N] int32, position in `schema.node_types`; "features": [N, F] float32, F the
      widest type's, narrower ones padded with zeros; "labels": [N] int32, -1 where there is none;
      "ids": [N] int32; "splits": {name: [N] bool}}.
    edges: {"type": [E] int32, position in `schema.edge_types`; "features": [E, F] float32}.
    globals: None.
  """
  import jraph

  graph, schema = _real(graph), graph.schema
  begin, end = graph.target_rows
  labels = np.full(graph.node_offsets[-1], -1, np.int32)
  labels[begin:end] = graph.target_labels
  splits = {name: np.zeros(len(labels), bool) for name in graph.splits}
  for name, mask in graph.splits.items():
    splits[name][begin:end] = mask
  node_sets = [graph.nodes[name] for name in schema.node_types]
  edge_sets = [graph.edges[name] for name in schema.edge_types]
  counts = [len(edges.senders) for edges in edge_sets]
  first = lambda name: graph.rows(name)[0]
  ends = zip(edge_sets, schema.edge_types)
  senders, receivers = zip(
    (np.zeros(0, np.int32),) * 2,
    *((edges.senders + first(e[0]), edges.receivers + first(e[2])) for edges, e in ends),
  )
  return jraph.GraphsTuple(
    nodes={
      "type": _numbered(graph.num_nodes.values()),
      "features": _stacked([nodes.features for nodes in node_sets], graph.num_nodes.values()),
      "labels": labels,
      "ids": np.concatenate([np.asarray(nodes.ids) for nodes in node_sets]),
      "splits": splits,
    },
    edges={
      "type": _numbered(counts),
      "features": _stacked([edges.features for edges in edge_sets], counts),
    },
    senders=np.concatenate(senders).astype(np.int32),
    receivers=np.concatenate(receivers).astype(np.int32),
    n_node=np.array([len(labels)], np.int32),
    n_edge=np.array([sum(counts)], np.int32),
    globals=None,
  )


def from_jraph(graphs, schema: Schema) -> HeteroGraph:
  """The typed graph of a GraphsTuple as `to_jraph` makes it: `from_jraph(to_jraph(g), g.schema) ==
  g`.

  Args:
    graphs: one graph; nodes of a type need not stand together, their order within the type is kept.
      "labels", "ids" and "splits" are optional. Labels count on the target type only.
    schema: names and widths; the first `feature_dims[t]` columns are the features of type t.
  Raises:
    InputError: a field is missing; a type is unknown; an edge's ends are not what its type says.
  """
  nodes, edges = graphs.nodes, graphs.edges
  for what, fields in (("nodes", nodes), ("edges", edges)):
    missing = {"type", "features"} - set(fields if isinstance(fields, Mapping) else ())
    if missing:
      raise InputError(f"{what} of the GraphsTuple lack {sorted(missing)}: make them a dictionary")
  node_type = _types("node", nodes["type"], len(schema.node_types))
  edge_type = _types("edge", edges["type"], len(schema.edge_types))
  ends = [np.asarray(graphs.senders), np.asarray(graphs.receivers)]
  local = np.zeros(len(node_type), np.int64)
  node_fields, ids = {}, {}
  for t, (name, width) in enumerate(zip(schema.node_types, schema.feature_dims)):
    rows = np.flatnonzero(node_type == t)
    local[rows] = np.arange(len(rows))
    node_fields[name] = {"num_nodes": len(rows)}
    if width:
      node_fields[name]["features"] = np.asarray(nodes["features"])[rows, :width]
    if "ids" in nodes:
      ids[name] = np.asarray(nodes["ids"], np.int32)[rows]
    if name == schema.target and "labels" in nodes:
      node_fields[name]["labels"] = np.asarray(nodes["labels"])[rows]
  edge_fields = {}
  for r, (name, width) in enumerate(zip(schema.edge_types, schema.edge_feature_dims)):
    at = np.flatnonzero(edge_type == r)
    found = []
    for side, end, wanted in (("sender", ends[0], name[0]), ("receiver", ends[1], name[2])):
      rows = end[at]
      bad = (rows < 0) | (rows >= len(node_type))
      bad |= node_type[np.where(bad, 0, rows)] != schema.node_types.index(wanted)
      if bad.any():
        place = at[bad.argmax()]
        raise InputError(f"edge {place} of {name}: {side} {end[place]} is no {wanted!r} node")
      found.append(local[rows])
    edge_fields[name] = (*found, np.asarray(edges["features"])[at, :width] if width else None)
  target = node_type == schema.node_types.index(schema.target)
  graph = HeteroGraph.from_arrays(
    nodes=node_fields,
    edges=edge_fields,
    target=schema.target,
    num_classes=schema.num_classes,
    class_names=schema.class_names,
    splits={name: np.asarray(mask)[target] for name, mask in nodes.get("splits", {}).items()},
  )
  if ids:
    graph = graph.replace(nodes={name: n.replace(ids=ids[name]) for name, n in graph.nodes.items()})
  return graph


def to_networkx(graph: HeteroGraph):
  """A `networkx.MultiDiGraph`; nodes are (type, row).

  Node attributes: `node_type`, `features` ([F] array, where there are any), `label` (an integer,
  where labelled), `splits` (names). Edge attributes: `relation`, and `features` where there are
  any. The schema and the names of the splits stand in the graph's attributes.
  """
  import networkx

  graph, schema = _real(graph), graph.schema
  out = networkx.MultiDiGraph(schema=schema, splits=tuple(graph.splits))
  for name in schema.node_types:
    nodes = graph.nodes[name]
    for row in range(len(nodes.ids)):
      fields: dict[str, Any] = {"node_type": name}
      if nodes.features is not None:
        fields["features"] = np.asarray(nodes.features[row])
      if nodes.labels is not None and nodes.labels[row] >= 0:
        fields["label"] = int(nodes.labels[row])
      if name == schema.target:
        fields["splits"] = tuple(split for split, mask in graph.splits.items() if mask[row])
      out.add_node((name, row), **fields)
  for source, relation, target in schema.edge_types:
    edges = graph.edges[source, relation, target]
    for at, (tail, head) in enumerate(zip(edges.senders.tolist(), edges.receivers.tolist())):
      fields = {} if edges.features is None else {"features": np.asarray(edges.features[at])}
      out.add_edge((source, tail), (target, head), relation=relation, **fields)
  return out


def from_networkx(
  graph,
  *,
  target: str | None = None,
  num_classes: int | None = None,
  class_names: tuple[str, ...] | None = None,
) -> HeteroGraph:
  """The typed graph of a networkx graph of any kind.

  Attributes are those of `to_networkx`, all optional: nodes without `node_type` are of type "node",
  edges without `relation` are "edge". An edge of an undirected graph stands for both directions.
  Rows follow the order of the nodes; the order of a receiver's edges is not kept.

  Args:
    graph: networkx graph. Its attribute `schema`, if there is one, gives the order of the types
      (empty ones included), the target and the classes.
    target: node type that carries the labels; by default the schema's, or the only labelled type.
    num_classes, class_names: as in `HeteroGraph.from_arrays`.
  Raises:
    InputError: the target is not clear; only some nodes or edges of a type have features.
  """
  schema = graph.graph.get("schema")
  if not graph.is_directed():
    graph = graph.to_directed()
  members: dict[str, list] = {name: [] for name in (schema.node_types if schema else ())}
  place = {}
  for node, fields in graph.nodes(data=True):
    found = members.setdefault(str(fields.get("node_type", "node")), [])
    place[node] = len(found)
    found.append(fields)
  listed: dict[tuple, list] = {name: [] for name in (schema.edge_types if schema else ())}
  kind = {node: str(fields.get("node_type", "node")) for node, fields in graph.nodes(data=True)}
  for tail, head, fields in graph.edges(data=True):
    name = kind[tail], str(fields.get("relation", "edge")), kind[head]
    listed.setdefault(name, []).append((place[tail], place[head], fields))
  labelled = [name for name, found in members.items() if any("label" in f for f in found)]
  target = target or (schema.target if schema else _only(labelled))
  if schema and num_classes is None and class_names is None and target == schema.target:
    num_classes, class_names = schema.num_classes, schema.class_names
  nodes = {}
  for name, found in members.items():
    nodes[name] = {"num_nodes": len(found)}
    features = _features(f"node type {name!r}", found, _width_of(schema, "node", name))
    if features is not None:
      nodes[name]["features"] = features
    if name in labelled or name == target:
      nodes[name]["labels"] = np.array([f.get("label", -1) for f in found], np.int64)
  edges = {}
  for name, found in listed.items():
    ends = np.array([edge[:2] for edge in found], np.int64).reshape(-1, 2).T
    features = _features(
      f"edge type {name}", [edge[2] for edge in found], _width_of(schema, "edge", name)
    )
    edges[name] = (*ends, features)
  names = graph.graph.get("splits") or sorted(
    {split for f in members.get(target, ()) for split in f.get("splits", ())}
  )
  return HeteroGraph.from_arrays(
    nodes=nodes,
    edges=edges,
    target=target,
    num_classes=num_classes,
    class_names=class_names,
    splits={
      split: np.array([split in f.get("splits", ()) for f in members[target]], bool)
      for split in names
    },
  )


def to_pyg(graph: HeteroGraph) -> dict[str, dict]:
  """PyG-style dictionaries of NumPy arrays.

  Returns:
    {"x_dict": {type: [N_t, F]}, "edge_index_dict": {edge type: [2, E] int64, senders first},
    "edge_attr_dict": {edge type: [E, F]}, "y_dict": {type: [N_t] int64, -1 unlabelled},
    "num_nodes_dict": {type: int}, "<split>_mask_dict": {target: [N_t] bool} for each split}.
  """
  graph = _real(graph)
  nodes = [(name, graph.nodes[name]) for name in graph.schema.node_types]
  edges = [(name, graph.edges[name]) for name in graph.schema.edge_types]
  return {
    "x_dict": {name: np.asarray(n.features) for name, n in nodes if n.features is not None},
    "edge_index_dict": {
      name: np.stack([e.senders, e.receivers]).astype(np.int64) for name, e in edges
    },
    "edge_attr_dict": {name: np.asarray(e.features) for name, e in edges if e.features is not None},
    "y_dict": {name: np.asarray(n.labels, np.int64) for name, n in nodes if n.labels is not None},
    "num_nodes_dict": dict(graph.num_nodes),
    **{
      f"{name}_mask_dict": {graph.schema.target: np.asarray(mask)}
      for name, mask in graph.splits.items()
    },
  }


def from_pyg(
  data,
  *,
  target: str | None = None,
  num_classes: int | None = None,
  class_names: tuple[str, ...] | None = None,
) -> HeteroGraph:
  """The graph of PyG-style dictionaries, or of a `HeteroData`-like object.

  Args:
    data: a mapping with the keys of `to_pyg` (all optional but the node types must follow from
      them; "y" may stand for "y_dict" and hold a plain array for `target`), or an object with
      `node_types`, `edge_types` and stores `data[type]` with x, y, num_nodes, edge_index, edge_attr
      and masks named `<split>_mask`. Arrays may be NumPy's, jax's or torch's.
    target: node type that carries the labels; by default the only one that has any.
    num_classes, class_names: as in `HeteroGraph.from_arrays`.
  Raises:
    InputError: the target is not clear, an edge type has no edge_index, or as `from_arrays` says.
  """
  if not isinstance(data, Mapping):
    data = _dictionaries(data)
  part = lambda key: data.get(key) or {}
  y = data.get("y_dict", data.get("y"))
  if y is not None and not isinstance(y, Mapping):
    if target is None:
      raise InputError("y is one array: name its node type with target=")
    y = {target: y}
  y = y or {}
  names = dict.fromkeys((*part("num_nodes_dict"), *part("x_dict"), *y))
  nodes = {}
  for name in names:
    fields = {
      "num_nodes": part("num_nodes_dict").get(name),
      "features": _array(part("x_dict").get(name)),
      "labels": _array(y.get(name)),
    }
    if fields["labels"] is not None:
      fields["labels"] = fields["labels"].reshape(len(fields["labels"]), -1)[:, 0]
    nodes[str(name)] = {key: value for key, value in fields.items() if value is not None}
  edges = {}
  for name, index in part("edge_index_dict").items():
    index = _array(index)
    if index is None or index.ndim != 2 or len(index) != 2:
      shape = "absent" if index is None else list(index.shape)
      raise InputError(f"edge_index of {name} is {shape}: give [2, E], senders then receivers")
    edges[tuple(name)] = (*index, _array(part("edge_attr_dict").get(name)))
  target = target or _only([str(name) for name in y])
  splits = {}
  for key, masks in data.items():
    if str(key).endswith("_mask_dict") and target in masks:
      splits[key.removesuffix("_mask_dict")] = _array(masks[target])
  return HeteroGraph.from_arrays(
    nodes=nodes,
    edges=edges,
    target=target,
    num_classes=num_classes,
    class_names=class_names,
    splits=splits,
  )


def _dictionaries(data) -> dict[str, dict]:
  """What `from_pyg` reads of a HeteroData-like object, as dictionaries."""
  try:
    node_types, edge_types = list(data.node_types), [tuple(name) for name in data.edge_types]
  except AttributeError as error:
    raise InputError(
      f"a {type(data).__name__} has no node_types and edge_types: give HeteroData or a dictionary"
    ) from error
  out: dict[str, dict] = {"x_dict": {}, "y_dict": {}, "num_nodes_dict": {}}
  for name in node_types:
    store = data[name]
    for key, field in (("x_dict", "x"), ("y_dict", "y"), ("num_nodes_dict", "num_nodes")):
      value = getattr(store, field, None)
      if value is not None:
        out[key][name] = value
    for field in store.keys() if hasattr(store, "keys") else vars(store):
      if field.endswith("_mask"):
        out.setdefault(f"{field}_dict", {})[name] = getattr(store, field)
  for key, field in (("edge_index_dict", "edge_index"), ("edge_attr_dict", "edge_attr")):
    out[key] = {name: getattr(data[name], field, None) for name in edge_types}
  return out


def _real(graph: HeteroGraph) -> HeteroGraph:
  return pad(graph, {}, {}) if padded_share(graph) else graph


def _only(labelled: list[str]) -> str:
  if len(labelled) != 1:
    found = f"node types {', '.join(labelled)} have" if labelled else "no node type has"
    raise InputError(f"{found} labels: name the labelled type with target=")
  return labelled[0]


def _array(x) -> np.ndarray | None:
  if x is None:
    return None
  return np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)


def _numbered(counts) -> np.ndarray:
  counts = list(counts)
  return np.repeat(np.arange(len(counts), dtype=np.int32), counts)


def _stacked(features, counts) -> np.ndarray:
  """[sum of counts, widest] float32; what is narrower or None is filled with zeros."""
  counts = list(counts)
  width = max((f.shape[1] for f in features if f is not None), default=0)
  out, begin = np.zeros((sum(counts), width), np.float32), 0
  for part, count in zip(features, counts):
    if part is not None:
      out[begin : begin + count, : part.shape[1]] = part
    begin += count
  return out


def _types(what: str, given, bound: int) -> np.ndarray:
  given = np.asarray(given)
  bad = np.flatnonzero((given < 0) | (given >= bound))
  if len(bad):
    raise InputError(
      f"type of {what} {bad[0]} is {given[bad[0]]}, the schema has {bound} {what} types"
    )
  return given


def _width_of(schema: Schema | None, what: str, name) -> int:
  if schema is None:
    return 0
  names = schema.node_types if what == "node" else schema.edge_types
  widths = schema.feature_dims if what == "node" else schema.edge_feature_dims
  return widths[names.index(name)] if name in names else 0


def _features(what: str, found: list[Mapping], width: int) -> np.ndarray | None:
  """[rows, F] of all `features`, None without any; `width` where there are no rows to tell."""
  have = [np.atleast_1d(np.asarray(f["features"], np.float32)) for f in found if "features" in f]
  if not have:
    return np.zeros((0, width), np.float32) if width and not found else None
  if len(have) < len(found) or len({x.shape for x in have}) > 1:
    raise InputError(
      f"{len(have)} of {len(found)} members of {what} have features, of shapes "
      f"{sorted({x.shape for x in have})}: give all or none, of one width"
    )
  return np.stack(have)
