"""What operators that tell relations apart share.

Axes: N node rows, M message rows, E edges, R relations, H heads; P = sum_t N_t R_t pairs of a node
and a relation that leads to its type: type after type, node after node, relation after relation.
"""

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from h2g.graph import HeteroGraph
from h2g.graph import Schema
from h2g.ops.edge import edge_attention
from h2g.ops.edge import EdgeIndex


def relations_to(schema: Schema) -> dict[str, list[int]]:
  """{node type: relations that lead to it}, ascending."""
  targets = [target for _, _, target in schema.edge_types]
  return {name: [r for r, t in enumerate(targets) if t == name] for name in schema.node_types}


def transform(graph: HeteroGraph, x: Array, weight: Array) -> Array:
  """[M, H, F] message rows x_n W_r, head by head, from x [N, H, D] and weight [R, H, D, F].

  One product per source type and head, [n, D] by [D, R F]: rows come out as rows. An einsum to
  [R, n, H, F] computes them as columns, and turning those costs as much again.
  """
  rows, parts = [], graph.by_type(x)
  heads, width = x.shape[1], weight.shape[3]
  for source, begin, end in graph.schema.source_runs:
    x = parts[source]
    w = jnp.moveaxis(weight[begin:end], 0, 2).reshape(heads, x.shape[2], -1)
    if heads == 1:
      y = (x[:, 0] @ w[0])[None]
    else:
      y = jnp.einsum("nhd,hdf->hnf", x, w)
    rows.append(jnp.transpose(y.reshape(heads, len(x), end - begin, width), (2, 1, 0, 3)))
  return _stacked(rows or [jnp.zeros((1, 0, heads, width), x.dtype)])


def relate(graph: HeteroGraph, x: Array, weight: Array, equation: str) -> Array:
  """[M, ...] message rows: per relation, its source type's rows of x times its weight.

  Args:
    graph: gives the relations.
    x: [N, ...].
    weight: [R, ...].
    equation: of `einsum`, rows n and relations r: "n..,r..->rn..".
  """
  runs, parts = graph.schema.source_runs, graph.by_type(x)
  rows = [jnp.einsum(equation, parts[s], weight[a:b]) for s, a, b in runs]
  return _stacked(rows or [jnp.einsum(equation, x[:0], weight)])


def relate_receivers(graph: HeteroGraph, x: Array, weight: Array, equation: str) -> Array:
  """[P, ...] pairs: the node's row of x times the relation's weight; "n..,r..->nr.."."""
  rows, parts = [], graph.by_type(x)
  for name, relations in relations_to(graph.schema).items():
    if relations:
      rows.append(jnp.einsum(equation, parts[name], weight[np.array(relations)]))
  return _stacked(rows or [jnp.einsum(equation, x[:0], weight)])


def by_relation(graph: HeteroGraph) -> EdgeIndex:
  """`graph.incoming` with pairs for receivers: each relation has its own softmax or mean.

  The edges keep their order, which within a receiver goes relation after relation.
  """
  index, schema = jax.tree.map(jnp.asarray, graph.incoming), graph.schema
  stride, shift = np.ones((2, len(schema.edge_types)), np.int32)
  counts, begin = [jnp.zeros(1, jnp.int32)], 0
  for name, relations in relations_to(schema).items():
    for rank, r in enumerate(relations):
      # The pair of node row v and relation r is v * stride[r] + shift[r].
      stride[r], shift[r] = len(relations), begin + rank - graph.rows(name)[0] * len(relations)
    found = [jnp.diff(graph.edges[schema.edge_types[r]].indptr) for r in relations]
    if found:
      counts.append(jnp.stack(found, axis=1).reshape(-1))
    begin += graph.num_nodes[name] * len(relations)
  relation = np.repeat(np.arange(len(stride), dtype=np.int32), np.diff(graph.message_offsets))
  relation = jnp.asarray(relation)[index.senders]
  pairs = index.receivers * jnp.asarray(stride)[relation] + jnp.asarray(shift)[relation]
  real = jnp.arange(pairs.shape[0]) < index.indptr[-1]
  indptr = jnp.cumulative_sum(jnp.concatenate(counts), dtype=jnp.int32)
  return index._replace(indptr=indptr, receivers=jnp.where(real, pairs, 0))


def per_type(graph: HeteroGraph, pairs: Array) -> dict[str, Array]:
  """{node type: [N_t, R_t, ...]} from pairs [P, ...]."""
  counts = {name: len(relations) for name, relations in relations_to(graph.schema).items()}
  ends = np.cumsum([graph.num_nodes[name] * count for name, count in counts.items()])
  shape = lambda name: (graph.num_nodes[name], counts[name], *pairs.shape[1:])
  parts = zip(counts, jnp.split(pairs, ends[:-1]))
  return {name: part.reshape(shape(name)) for name, part in parts}


def within_a_type(graph: HeteroGraph) -> np.ndarray:
  """[P] bool: whether the pair's relation starts at the node's own type."""
  masks = [np.zeros(0, bool)]
  for name, relations in relations_to(graph.schema).items():
    same = np.array([graph.schema.edge_types[r][0] == name for r in relations], bool)
    masks.append(np.tile(same, graph.num_nodes[name]))
  return np.concatenate(masks)


def edge_softmax(
  logits: Array, index: EdgeIndex, *, own: Array | None = None, with_own: np.ndarray | None = None
) -> tuple[Array, Array]:
  """Weights of each receiver's incoming edges, and of itself as one more entry of its softmax.

  Args:
    logits: [E, H] in receiver order.
    index: the edges.
    own: [receivers, H] logit of the receiver itself; None: there is no such entry.
    with_own: [receivers] bool, which receivers have it; None: all.
  Returns:
    [E, H], zeros on padding, and [receivers, H], zeros where there is no such entry.
  """
  rows = index.sender_indptr.shape[0] - 1, index.indptr.shape[0] - 1
  nothing = [jnp.zeros((count, logits.shape[1], 1)) for count in rows]  # all of a logit is in bias
  lse = edge_attention(nothing[1], nothing[0], nothing[0], index, bias=logits, return_lse=True).lse
  real = (jnp.arange(logits.shape[0]) < index.indptr[-1])[:, None]
  weights = jnp.exp(jnp.where(real, logits - lse[index.receivers], 0.0))
  if own is None:
    return jnp.where(real, weights, 0.0), jnp.zeros_like(lse)
  own = jax.nn.sigmoid(own - lse)
  if with_own is not None:
    own = jnp.where(with_own[:, None], own, 0.0)
  return jnp.where(real, weights * (1.0 - own)[index.receivers], 0.0), own


def _stacked(rows: list[Array]) -> Array:
  return jnp.concatenate([row.reshape(-1, *row.shape[2:]) for row in rows])
