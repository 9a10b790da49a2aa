"""Structural encodings: features of a node that come from its edges alone, never from labels.

All run on the host, ignore padding, and give padded nodes zeros.
"""

import numpy as np
from scipy import sparse

from h2g.errors import InputError
from h2g.graph.graph import EdgeSet
from h2g.graph.graph import HeteroGraph

CELLS = 1 << 24  # most entries of a dense matrix
EXACT = 1 << 20  # most entries of a relation that is decomposed exactly; time is their 3/2 power
DENSE_WORK = 1 << 34  # most products of a relation whose nodes are compared by a dense matmul
DENSE_SHARE = 0.02  # least share of pairs with something in common that is worth a dense matmul
DENSE_NODES = 4096  # most nodes whose Laplacian is decomposed; time is cubic in them


def degree_encoding(graph: HeteroGraph, *, weighted: bool = False) -> dict[str, np.ndarray]:
  """log(1 + degree) in and out of every relation a node type takes part in.

  Args:
    graph: weights are the first edge feature, 1 without any.
    weighted: the degree is the sum of the weights' magnitudes instead of the number of edges.
  Returns:
    {node type: [N_t, K_t] float32}; columns follow `schema.edge_types`, receiver side then sender
    side.
  """
  columns = {name: [] for name in graph.schema.node_types}
  for name in graph.schema.edge_types:
    edges = graph.edges[name]
    arriving, leaving = np.diff(edges.indptr), np.diff(edges.sender_indptr)
    if weighted:
      senders, receivers, weights = _weighted(edges)
      arriving = np.bincount(receivers, np.abs(weights), len(arriving))
      leaving = np.bincount(senders, np.abs(weights), len(leaving))
    columns[name[2]].append(np.log1p(arriving))
    columns[name[0]].append(np.log1p(leaving))
  return {name: _stack(found, graph.num_nodes[name]) for name, found in columns.items()}


def spectral_encoding(
  graph: HeteroGraph, dim: int, *, log_weights: bool = False, seed: int = 0
) -> dict[str, np.ndarray]:
  """Singular vectors of each relation's adjacency, both sides, scaled by the root of the value.

  A_r ~ U S V^T with A_r [N_source, N_target] the edge weights (first edge feature, 1 without any):
  sources get U sqrt(S), targets V sqrt(S), `dim` columns each (fewer where the rank is smaller).
  The sign of each pair makes the entry of largest magnitude of U positive. Where singular values
  are equal, the vectors are one basis of several, the same on one machine.

  Args:
    graph: any. Relations of up to 1 M cells (N_source x N_target) are decomposed exactly; larger
      ones by subspace iteration on their edges, close where singular values fall off.
    dim: number of singular vectors per relation and side.
    log_weights: A_r holds sign(w) log(1 + |w|) instead of the weights w.
    seed: of the subspace iteration's start.
  Returns:
    {node type: [N_t, K_t] float32}.
  Source: arXiv 0909.4061 algorithms 4.4 and 5.1, for the larger ones.
  """
  columns = {name: [] for name in graph.schema.node_types}
  for name in graph.schema.edge_types:
    edges = graph.edges[name]
    shape = (graph.num_nodes[name[0]], graph.num_nodes[name[2]])
    senders, receivers, weights = _weighted(edges)
    if log_weights:
      weights = np.sign(weights) * np.log1p(np.abs(weights))
    if shape[0] * shape[1] <= EXACT:
      dense = np.zeros(shape)
      np.add.at(dense, (senders, receivers), weights)
      u, s, vt = np.linalg.svd(dense, full_matrices=False)
    else:
      u, s, vt = _subspace_svd(edges, weights, shape, dim, np.random.default_rng(seed))
    keep = min(dim, int((s > 1e-6 * max(s.max(initial=0.0), 1.0)).sum()))
    u, s, v = u[:, :keep], s[:keep], vt[:keep].T
    sign = np.sign(np.take_along_axis(u, np.abs(u).argmax(0)[None, :], 0)) if keep else 1.0
    columns[name[0]].extend((u * sign * np.sqrt(s)).T)
    columns[name[2]].extend((v * sign * np.sqrt(s)).T)
  return {name: _stack(found, graph.num_nodes[name]) for name, found in columns.items()}


def random_walk_encoding(graph: HeteroGraph, steps: int) -> dict[str, np.ndarray]:
  """Probability that a walk is back where it began after 1, 2, ..., `steps` steps.

  p_k[u] = (P^k)[u, u], P = D^-1 A on the homogenised graph: A[u, v] counts the edges of all
  relations between u and v in either direction. Computed as row u of S^i times row u of S^j with
  i + j = k and S = D^-1/2 A D^-1/2 (symmetric, same diagonal): steps / 2 exact products.

  Args:
    graph: any size; time grows as steps x N x E, or steps x N^3 where N^2 fits into 16 M cells.
    steps: 1 or more.
  Returns:
    {node type: [N_t, steps] float32}; zeros for a node without edges.
  Source: arXiv 2110.07875.
  """
  if steps < 1:
    raise InputError(f"random_walk_encoding got steps={steps}: give 1 or more")
  heads, tails, values = _normalised(graph)
  count = graph.node_offsets[-1]
  indptr = np.searchsorted(heads, np.arange(count + 1))
  dense = None
  if count * count <= CELLS:
    dense = np.zeros((count, count))
    np.add.at(dense, (heads, tails), values)
  out = np.zeros((count, steps))
  # Columns of a chunk are its nodes: gathering an edge's row then reads memory in a row.
  chunk = max(1, CELLS // max(count, len(heads), 1))
  for begin in range(0, count, chunk):
    here = np.arange(begin, min(begin + chunk, count))
    last = np.zeros((count, len(here)))
    last[here, here - begin] = 1
    for k in range(1, steps + 1, 2):
      walked = dense @ last if dense is not None else _rows_sum(indptr, tails, values, last)
      out[here, k - 1] = (last * walked).sum(0)  # i = (k - 1) / 2, j = i + 1
      if k < steps:
        out[here, k] = np.square(walked).sum(0)
      last = walked
  return _by_type(graph, out)


def laplacian_encoding(graph: HeteroGraph, dim: int) -> dict[str, np.ndarray]:
  """Eigenvectors of the smallest non-zero eigenvalues of the homogenised graph's Laplacian.

  L = I - D^-1/2 A D^-1/2, A as in `random_walk_encoding`. The zero eigenvalues (one per connected
  component) are left out. The first entry whose magnitude is within 1e-6 of the largest is
  positive. Where eigenvalues are equal, the vectors are one basis of several, the same on one
  machine: models should not read a meaning into single entries.

  Args:
    graph: of at most 4,096 real nodes.
    dim: number of eigenvectors.
  Returns:
    {node type: [N_t, dim] float32}; columns beyond what there is are 0.
  Raises:
    InputError: too many nodes.
  Source: arXiv 2003.00982.
  """
  count = graph.node_offsets[-1]
  heads, tails, values = _normalised(graph)
  used = np.unique(heads)  # nodes without edges are components of their own: zeros
  if len(used) > DENSE_NODES:
    raise InputError(
      f"laplacian_encoding decomposes at most {DENSE_NODES} nodes, the graph has {len(used)}: "
      "use random_walk_encoding or spectral_encoding"
    )
  laplacian = np.eye(len(used))
  np.add.at(laplacian, (np.searchsorted(used, heads), np.searchsorted(used, tails)), -values)
  eigenvalues, vectors = np.linalg.eigh(laplacian)
  vectors = vectors[:, eigenvalues > 1e-8][:, :dim]
  out = np.zeros((count, dim))
  out[used, : vectors.shape[1]] = vectors * _signs(vectors)
  return _by_type(graph, out)


def with_similar(
  graph: HeteroGraph, node_type: str, k: int, *, relation: str = "similar"
) -> HeteroGraph:
  """Adds (node_type, relation, node_type): each node hears from the k nodes most like it.

  Likeness is the mean, over every relation r that the type takes part in and each side of it, of
  the cosine between two nodes' rows of the (weighted) adjacency: the normalised number of metapaths
  u -r-> . <-r- v, in the spirit of PathSim (Sun et al., VLDB 2011). Labels play no part. The edge
  feature is the likeness, in [0, 1] for positive weights.

  Args:
    graph: weights are the first edge feature, 1 without any.
    node_type: whose nodes are compared; its N_t x N_t table is held in memory, in chunks of rows.
    k: edges into each node, fewer where fewer nodes are alike at all. Ties go to the smaller index.
  """
  count = graph.num_nodes[node_type]
  profiles = []  # of each relation and side: (rows, columns, weights, number of columns)
  for name in graph.schema.edge_types:
    senders, receivers, weight = _weighted(graph.edges[name])
    if name[0] == node_type:
      profiles.append((senders, receivers, weight, graph.num_nodes[name[2]]))
    if name[2] == node_type:
      profiles.append((receivers, senders, weight, graph.num_nodes[name[0]]))
  if not profiles or not count:
    return graph.with_edges((node_type, relation, node_type), [], [], np.zeros((0, 1)))
  dense, listed = [np.zeros((count, 0), np.float32)], [sparse.csr_array((count, 0))]
  for rows, columns, weight, width in profiles:
    profile = sparse.coo_array((weight, (rows, columns)), (count, width)).tocsr()  # adds up
    products = np.sum(np.bincount(profile.indices, minlength=width).astype(float) ** 2)
    small = count * count <= CELLS or products > count * count * DENSE_SHARE
    if small and count * count * width <= DENSE_WORK:
      table = profile.toarray().astype(np.float32)
      norm = np.linalg.norm(table, axis=1, keepdims=True)
      dense.append(table / np.where(norm > 0, norm, 1))
    else:
      norm = np.sqrt(profile.multiply(profile).sum(axis=1))
      listed.append(sparse.diags_array(1 / np.where(norm > 0, norm, 1)) @ profile)
  dense = np.concatenate(dense, 1) / np.sqrt(len(profiles))
  listed = sparse.hstack(listed).tocsr().astype(np.float32) / np.sqrt(len(profiles))
  across = listed.T.tocsr()
  k = min(max(k, 1), count)
  senders, receivers, likeness = [], [], []
  chunk = max(1, CELLS // count)
  for begin in range(0, count, chunk):
    products = listed[begin : begin + chunk] @ across
    if dense.shape[1]:
      table = dense[begin : begin + chunk] @ dense.T
      if products.nnz:
        table += products.toarray()
      here = np.arange(len(table))
      table[here, here + begin] = 0
      least = np.partition(table, count - k, axis=1)[:, count - k, None]
      row, column = np.nonzero((table >= least) & (table > 0))
      found = table[row, column]
    else:
      products = products.tocoo()
      other = (products.col != products.row + begin) & (products.data > 0)
      row, column, found = (x[other] for x in (products.row, products.col, products.data))
    order = np.lexsort((column, -found, row))  # nearest first, ties to the smaller index
    row, column, found = row[order], column[order], found[order]
    near = np.arange(len(row)) - np.searchsorted(row, row) < k
    senders.append(column[near])
    receivers.append(row[near] + begin)
    likeness.append(found[near])
  return graph.with_edges(
    (node_type, relation, node_type), *map(np.concatenate, (senders, receivers, likeness))
  )


def append_features(graph: HeteroGraph, extra: dict[str, np.ndarray]) -> HeteroGraph:
  """A copy whose nodes have `extra` feature columns, each standardised over its node type."""
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


def _weighted(edges: EdgeSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(senders, receivers, weights) without padding; the weight is the first feature, or 1."""
  count = int(edges.indptr[-1])
  senders, receivers = np.asarray(edges.senders)[:count], np.asarray(edges.receivers)[:count]
  weights = np.ones(count) if edges.features is None else np.asarray(edges.features)[:count, 0]
  return senders, receivers, weights


def _rows_sum(indptr, ids, weights, x: np.ndarray) -> np.ndarray:
  """[N, F] sum over the entries e of CSR row n of weights[e] x[ids[e]]."""
  out = np.zeros((len(indptr) - 1, x.shape[1]))
  filled = np.flatnonzero(np.diff(indptr))
  if len(filled):
    out[filled] = np.add.reduceat(x[ids] * weights[:, None], indptr[filled], axis=0)
  return out


def _subspace_svd(edges: EdgeSet, weights, shape, dim: int, rng: np.random.Generator):
  """The largest singular values and vectors of a relation's adjacency, from its edges alone."""
  senders = np.asarray(edges.senders)[: len(weights)]
  order = np.asarray(edges.sender_order)[: len(weights)]
  receivers = np.asarray(edges.receivers)[order]
  to_source = lambda x: _rows_sum(np.asarray(edges.sender_indptr), receivers, weights[order], x)
  to_target = lambda x: _rows_sum(np.asarray(edges.indptr), senders, weights, x)
  basis = rng.standard_normal((shape[1], min(dim + 10, *shape)))
  for _ in range(8):  # each turn sharpens the ratio of two singular values by its square
    basis = np.linalg.qr(to_target(np.linalg.qr(to_source(basis))[0]))[0]
  u, s, vt = np.linalg.svd(to_source(basis), full_matrices=False)
  return u, s, vt @ basis.T


def _normalised(graph: HeteroGraph) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """D^-1/2 A D^-1/2 of the homogenised graph, both directions of every edge: (head, tail, value).

  Heads ascend; parallel edges stand side by side and add up.
  """
  heads, tails = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
  for name in graph.schema.edge_types:
    senders, receivers, _ = _weighted(graph.edges[name])
    senders = senders.astype(np.int64) + graph.rows(name[0])[0]
    receivers = receivers.astype(np.int64) + graph.rows(name[2])[0]
    heads += [receivers, senders]
    tails += [senders, receivers]
  heads, tails = np.concatenate(heads), np.concatenate(tails)
  order = np.argsort(heads, kind="stable")
  heads, tails = heads[order], tails[order]
  degree = np.bincount(heads, minlength=graph.node_offsets[-1]).astype(float)
  return heads, tails, 1.0 / np.sqrt(degree[heads] * degree[tails])


def _signs(vectors: np.ndarray) -> np.ndarray:
  """[K] signs that make the first of the (nearly) largest entries of each column positive."""
  if not vectors.size:
    return np.ones(vectors.shape[1])
  size = np.abs(vectors)
  first = (size >= size.max(0) * (1 - 1e-6)).argmax(0)
  return np.sign(vectors[first, np.arange(vectors.shape[1])])


def _by_type(graph: HeteroGraph, rows: np.ndarray) -> dict[str, np.ndarray]:
  names = graph.schema.node_types
  return {name: rows[slice(*graph.rows(name))].astype(np.float32) for name in names}


def _stack(columns, rows: int) -> np.ndarray:
  return np.stack(columns, 1).astype(np.float32) if columns else np.zeros((rows, 0), np.float32)
