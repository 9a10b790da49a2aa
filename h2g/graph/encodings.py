"""Structural encodings: features of a node that come from its edges alone, never from labels."""

import numpy as np

from h2g.graph.graph import HeteroGraph


def degree_encoding(graph: HeteroGraph) -> dict[str, np.ndarray]:
  """log(1 + degree) in and out of every relation a node type takes part in.

  Returns:
    {node type: [N_t, K_t] float32}; columns follow `schema.edge_types`, receiver side then sender side.
  """
  columns = {name: [] for name in graph.schema.node_types}
  for name in graph.schema.edge_types:
    edges = graph.edges[name]
    columns[name[2]].append(np.log1p(np.diff(edges.indptr)))
    columns[name[0]].append(np.log1p(np.diff(edges.sender_indptr)))
  return {name: _stack(found, graph.num_nodes[name]) for name, found in columns.items()}


def spectral_encoding(graph: HeteroGraph, dim: int) -> dict[str, np.ndarray]:
  """Singular vectors of each relation's adjacency, both sides, scaled by the root of the value.

  A_r ~ U S V^T with A_r [N_source, N_target] the edge weights (first edge feature, 1 without any):
  sources get U sqrt(S), targets V sqrt(S), `dim` columns each (fewer where the rank is smaller). The
  sign of each pair makes the entry of largest magnitude of U positive, so the answer is deterministic.

  Args:
    graph: any; relations are read dense, so N_source x N_target must fit in memory.
    dim: number of singular vectors per relation and side.
  Returns:
    {node type: [N_t, K_t] float32}.
  """
  columns = {name: [] for name in graph.schema.node_types}
  for name in graph.schema.edge_types:
    edges = graph.edges[name]
    shape = (graph.num_nodes[name[0]], graph.num_nodes[name[2]])
    dense = np.zeros(shape)
    weight = 1.0 if edges.features is None else np.asarray(edges.features)[:, 0]
    np.add.at(dense, (np.asarray(edges.senders), np.asarray(edges.receivers)), weight)
    u, s, vt = np.linalg.svd(dense, full_matrices=False)
    keep = min(dim, int((s > 1e-6 * max(s.max(initial=0.0), 1.0)).sum()))
    u, s, v = u[:, :keep], s[:keep], vt[:keep].T
    sign = np.sign(np.take_along_axis(u, np.abs(u).argmax(0)[None, :], 0)) if keep else 1.0
    columns[name[0]].extend((u * sign * np.sqrt(s)).T)
    columns[name[2]].extend((v * sign * np.sqrt(s)).T)
  return {name: _stack(found, graph.num_nodes[name]) for name, found in columns.items()}


def with_similar(
    graph: HeteroGraph, node_type: str, k: int, *, relation: str = "similar"
) -> HeteroGraph:
  """Adds (node_type, relation, node_type): each node hears from the k nodes most like it.

  Likeness is the mean, over every relation r that the type takes part in and each side of it, of the
  cosine between two nodes' rows of the (weighted) adjacency: the normalised number of metapaths
  u -r-> . <-r- v, in the spirit of PathSim (Sun et al., VLDB 2011). Labels play no part. The edge
  feature is the likeness, in [0, 1] for positive weights.

  Args:
    graph: weights are the first edge feature, 1 without any.
    node_type: whose nodes are compared; its N_t x N_t table is held in memory, in chunks of rows.
    k: edges into each node, fewer where fewer nodes are alike at all. Ties go to the smaller index.
  """
  count = graph.num_nodes[node_type]
  profiles = []
  for name in graph.schema.edge_types:
    edges = graph.edges[name]
    weight = np.ones(len(edges.senders)) if edges.features is None else edges.features[:, 0]
    senders, receivers = np.asarray(edges.senders), np.asarray(edges.receivers)
    for side, rows, columns, width in (
        (0, senders, receivers, graph.num_nodes[name[2]]),
        (2, receivers, senders, graph.num_nodes[name[0]]),
    ):
      if name[side] == node_type:
        dense = np.zeros((count, width), np.float32)
        np.add.at(dense, (rows, columns), weight)
        norm = np.linalg.norm(dense, axis=1, keepdims=True)
        profiles.append(dense / np.where(norm > 0, norm, 1))
  profile = np.concatenate(profiles, 1) / np.sqrt(len(profiles))
  senders, receivers, likeness = [], [], []
  for begin in range(0, count, 4096):
    table = profile[begin : begin + 4096] @ profile.T
    here = np.arange(len(table))
    table[here, here + begin] = 0
    nearest = np.argsort(-table, axis=1, kind="stable")[:, :k]
    found = np.take_along_axis(table, nearest, 1)
    row, column = np.nonzero(found > 0)
    senders.append(nearest[row, column])
    receivers.append(row + begin)
    likeness.append(found[row, column])
  return graph.with_edges(
      (node_type, relation, node_type), *map(np.concatenate, (senders, receivers, likeness))
  )


def append_features(graph: HeteroGraph, extra: dict[str, np.ndarray]) -> HeteroGraph:
  """A copy whose node features have `extra` columns appended, each standardised over its node type."""
  import dataclasses

  nodes, widths = {}, []
  for name in graph.schema.node_types:
    node_set = graph.nodes[name]
    given = extra.get(name)
    if given is not None and given.shape[1]:
      scaled = (given - given.mean(0)) / (given.std(0) + 1e-6)
      have = [] if node_set.features is None else [np.asarray(node_set.features)]
      node_set = node_set.replace(features=np.concatenate([*have, scaled], 1).astype(np.float32))
    nodes[name] = node_set
    widths.append(0 if node_set.features is None else node_set.features.shape[1])
  schema = dataclasses.replace(graph.schema, feature_dims=tuple(widths))
  return graph.replace(nodes=nodes, schema=schema)


def _stack(columns, rows: int) -> np.ndarray:
  return np.stack(columns, 1).astype(np.float32) if columns else np.zeros((rows, 0), np.float32)
