"""Structural encodings: features of a node that come from its edges alone, never from labels."""

import numpy as np

from h2g.graph.graph import HeteroGraph


def degree_encoding(graph: HeteroGraph) -> dict[str, np.ndarray]:
  """log(1 + degree) in and out of every relation a node type takes part in.

  Returns:
    {node type: [N_t, K_t] float32}; columns follow `schema.edge_types`, receiver side then sender side.
  """
  columns = {name: [] for name in graph.schema.node_types}
  for name, edges in graph.edges.items():
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
  for name, edges in graph.edges.items():
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
