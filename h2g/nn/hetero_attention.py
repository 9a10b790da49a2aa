"""Attention over the typed edges of a heterogeneous graph.

Axes: N node rows (type-sorted), M message rows (one per relation and source node), E edges, R edge
types, T node types, H heads, D = dim / H head width.
"""

import functools
import math

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from h2g.graph import HeteroGraph
from h2g.graph import Schema
from h2g.graph.views import relation_hops
from h2g.nn.relations import transform
from h2g.nn.typed import TypedLinear
from h2g.nn.widths import head_width
from h2g.ops.attention import attention
from h2g.ops.edge import edge_attention
from h2g.ops.edge import EdgeAttentionOut
from h2g.ops.edge import EdgeIndex

RELATION_INIT = jax.nn.initializers.variance_scaling(
  1.0, "fan_avg", "uniform", in_axis=-2, out_axis=-1, batch_axis=(0, 1)
)


class CrossTypeAttention(nnx.Module):
  """Softmax over all incoming edges of a node, all relations together.

  q, k, v = a W^{q,k,v}_t per node type; for an edge e = (u -> v) of relation r
    s_e = clip(<q_v, k_u W_r> * prior_r / sqrt(D), -clip, clip) + c_r + <f_e, B_r>
    o_v = sum_e softmax_e(s_e) v_u W'_r;   out_v = o_v W^o_t + b^o_t
  k_u W_r is computed once per source node and relation (message rows), never per edge.

  Args of the constructor:
    schema: node and edge types, edge feature widths.
    dim, num_heads: hidden width and number of heads (H divides dim).
    key_weights: W_r on the keys (H2GB `edge_weight`, on).
    value_weights: W'_r on the values (present but unused in the official code, off; HGT uses it).
    prior: a learned scalar per relation and head that scales the logits (HGT's mu).
    edge_bias: a bias per head, c_r + <f_e, B_r>: a constant per relation and a linear map of the
      edge's features (ours; off).
    hop_bias: a learned constant per hop and head, at first 0, for graphs whose relations span
      several hops (the views "strict_2hop", "strict_3hop"): H2GB's mask `kHop`.
    specialise: initial c_r of the head that a relation is assigned to (names in order, dealt round
      the heads), 0 for the others: heads start out listening to different relations, which small
      steps in log space would take long to learn. 0 starts them alike.
    clip: bound of the logits before the bias; None leaves them.
    dropout_rate: of the attention weights.
  Source: arXiv 2407.10916 (cross-type heterogeneous attention); arXiv 2003.01332 eq. 3-5 (HGT).
  """

  def __init__(
    self,
    schema: Schema,
    dim: int,
    num_heads: int,
    *,
    key_weights: bool = True,
    value_weights: bool = False,
    prior: bool = False,
    edge_bias: bool = False,
    hop_bias: bool = False,
    specialise: float = 0.0,
    clip: float | None = 5.0,
    dropout_rate: float = 0.0,
    rngs: nnx.Rngs,
  ):
    head_dim = head_width(dim, num_heads)
    num_types, num_relations = len(schema.node_types), len(schema.edge_types)

    def relation_matrices():
      shape = (num_relations, num_heads, head_dim, head_dim)
      return nnx.Param(RELATION_INIT(rngs.params(), shape, jnp.float32))

    self.qkv = TypedLinear(num_types, dim, 3 * dim, rngs=rngs)
    self.out = TypedLinear(num_types, dim, dim, rngs=rngs)
    self.key_weight = relation_matrices() if key_weights else None
    self.value_weight = relation_matrices() if value_weights else None
    self.prior = nnx.Param(jnp.ones((num_relations, num_heads))) if prior else None
    width = max(schema.edge_feature_dims, default=0)
    constant = specialise * _assigned(schema, num_heads)
    self.relation_bias = nnx.Param(jnp.asarray(constant)) if edge_bias else None
    features = jnp.zeros((num_relations, width, num_heads))
    self.edge_bias = nnx.Param(features) if edge_bias else None
    hops = max(relation_hops(schema), default=1)
    self.hop_bias = nnx.Param(jnp.zeros((hops, num_heads))) if hop_bias else None
    self.num_heads, self.clip, self.dropout_rate = num_heads, clip, dropout_rate

  def __call__(self, x: Array, graph: HeteroGraph, *, key: Array | None = None) -> Array:
    """Returns [N, dim]; zeros (plus the output bias) for nodes without incoming edges."""
    heads = self.attend(x, graph, dropout_key=key)
    return self.out(heads.reshape(x.shape), graph.node_offsets)

  def attend(
    self, x: Array, graph: HeteroGraph, *, dropout_key: Array | None = None, return_weights=False
  ) -> Array | EdgeAttentionOut:
    """The heads before the output map, [N, H, D]; with `return_weights` also the weights [E, H]."""
    dim = x.shape[1]
    q, k, v = jnp.split(self.qkv(x, graph.node_offsets), 3, axis=1)
    k = _relate(graph, self._heads(k), self.key_weight, self.prior)
    v = _relate(graph, self._heads(v), self.value_weight, None)
    return edge_attention(
      self._heads(q),
      k,
      v,
      graph.incoming,
      bias=self._edge_bias(graph),
      scale=1.0 / math.sqrt(dim // self.num_heads),
      clip=self.clip,
      dropout_rate=self.dropout_rate if dropout_key is not None else 0.0,
      dropout_key=dropout_key,
      return_weights=return_weights,
    )

  def _edge_bias(self, graph: HeteroGraph) -> Array | None:
    if self.edge_bias is None and self.hop_bias is None:
      return None
    constant = jnp.zeros((len(graph.schema.edge_types), self.num_heads))
    weight = jnp.zeros((len(graph.schema.edge_types), 0, self.num_heads))
    if self.edge_bias is not None:
      constant, weight = constant + self.relation_bias[...], self.edge_bias[...]
    if self.hop_bias is not None:
      constant = constant + self.hop_bias[...][np.array(relation_hops(graph.schema)) - 1]
    return relation_edge_bias(graph, constant, weight)

  def _heads(self, x: Array) -> Array:
    return x.reshape(x.shape[0], self.num_heads, -1)


class EdgeTypeAttention(nnx.Module):
  """One attention per relation, each with its own maps and its own softmax, added up.

  For relation r from s to t: q = a_t W^q_r, k = a_s W^k_r, v = a_s W^v_r, s_e as in
  `CrossTypeAttention` with W_r = I, softmax over the edges of r that reach the node; out_v = sum
  over r of o_v W^o_r + b^o_r. A node that a relation does not reach gets b^o_r from it.

  Args of the constructor:
    schema, dim, num_heads, clip, dropout_rate: as of `CrossTypeAttention`.
    all_pairs: every node of s for every node of t instead of the edges.
  Source: H2GB's `SparseEdgeTransformer` and `EdgeTransformer`.
  """

  def __init__(
    self,
    schema: Schema,
    dim: int,
    num_heads: int,
    *,
    all_pairs: bool = False,
    clip: float | None = 5.0,
    dropout_rate: float = 0.0,
    rngs: nnx.Rngs,
  ):
    head_width(dim, num_heads)  # raises where they do not fit
    num_relations = len(schema.edge_types)
    self.query = TypedLinear(num_relations, dim, dim, rngs=rngs)
    self.key_value = TypedLinear(num_relations, dim, 2 * dim, rngs=rngs)
    self.out = TypedLinear(num_relations, dim, dim, rngs=rngs)
    self.num_heads, self.all_pairs = num_heads, all_pairs
    self.clip, self.dropout_rate = clip, dropout_rate

  def __call__(self, x: Array, graph: HeteroGraph, *, key: Array | None = None) -> Array:
    """Returns [N, dim]."""
    heads = lambda part: part.reshape(part.shape[0], self.num_heads, -1)
    rate = 0.0 if key is None else self.dropout_rate
    total = {name: 0.0 for name in graph.schema.node_types}
    parts = graph.by_type(x)
    for r, name in enumerate(graph.schema.edge_types):
      source, target = parts[name[0]], parts[name[2]]
      relation = lambda module, rows, r=r: rows @ module.kernel[...][r] + module.bias[...][r][None]
      q = heads(relation(self.query, target))
      k, v = map(heads, jnp.split(relation(self.key_value, source), 2, axis=1))
      r_key = None if key is None else jax.random.fold_in(key, r)
      if self.all_pairs:
        real = graph.nodes[name[0]].mask  # a mask: the clip would lift a bias of -inf
        k, v = (jnp.where(real[:, None, None], part, 0.0) for part in (k, v))
        out = attention(
          q[None],
          k[None],
          v[None],
          mask=real[None, None, None],
          logits_fn=None if self.clip is None else functools.partial(_clipped, bound=self.clip),
          dropout_rate=rate,
          dropout_key=r_key,
        )[0]
      else:
        edges = graph.edges[name]
        fields = (edges.indptr, edges.senders, edges.receivers)
        index = EdgeIndex(*fields, edges.sender_indptr, edges.sender_order, edges.senders)
        out = edge_attention(q, k, v, index, clip=self.clip, dropout_rate=rate, dropout_key=r_key)
      total[name[2]] = total[name[2]] + relation(self.out, out.reshape(target.shape))
    sizes = graph.num_nodes
    rows = [jnp.broadcast_to(out, (sizes[name], x.shape[1])) for name, out in total.items()]
    return jnp.concatenate(rows)


def _clipped(logits: Array, indices, *, bound: float) -> Array:
  del indices
  return jnp.clip(logits, -bound, bound)


def relation_mass(graph: HeteroGraph, weights: Array) -> dict[tuple[str, str, str], float]:
  """Share of the target nodes' attention that each relation receives, mean over nodes and heads.

  Args:
    graph: with `incoming`.
    weights: [E, H] softmax weights in receiver order.
  Returns:
    {edge type: share}; the shares of a graph whose target nodes all have edges add up to 1.
  """
  begin, end = graph.target_rows
  index = jax.tree.map(np.asarray, graph.incoming)
  real = (np.arange(len(index.senders)) < index.indptr[-1]) & (index.receivers >= begin)
  real &= index.receivers < end
  relation = np.searchsorted(graph.message_offsets, index.senders[real], side="right") - 1
  mass = np.bincount(relation, np.asarray(weights)[real].mean(1), len(graph.schema.edge_types))
  return dict(zip(graph.schema.edge_types, (mass / (end - begin)).tolist()))


def _assigned(schema: Schema, num_heads: int) -> np.ndarray:
  """[R, H] float32, 1 where the head is the relation's: names in order, dealt round the heads."""
  names = list(dict.fromkeys(relation for _, relation, _ in schema.edge_types))
  heads = np.array([names.index(name) % num_heads for _, name, _ in schema.edge_types], np.int64)
  return np.eye(num_heads, dtype=np.float32)[heads]


def _relate(graph: HeteroGraph, x: Array, weight, prior) -> Array:
  """[M, H, D] message rows from node rows [N, H, D]: per relation, times W_r and the prior."""
  if weight is None:
    return graph.message_rows(x)
  matrices = weight[...]
  if prior is not None:
    matrices = matrices * prior[...][:, :, None, None]
  return transform(graph, x, matrices)


def relation_edge_bias(graph: HeteroGraph, constant: Array, weight: Array) -> Array:
  """c_r + <f_e, B_r>: [E, H] in receiver order, from constant [R, H] and weight [R, F, H]."""
  width = weight.shape[1]
  features, sizes = [], []
  for edge_type in graph.schema.edge_types:
    edges = graph.edges[edge_type]
    sizes.append(edges.senders.shape[0])
    given = jnp.zeros((sizes[-1], 0)) if edges.features is None else edges.features[:, :width]
    features.append(jnp.pad(given, ((0, 0), (0, width - given.shape[1]))))
  features = jnp.concatenate(features)[graph.incoming.edge_ids]
  relation = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
  relation = jnp.asarray(relation)[graph.incoming.edge_ids]
  # One feature after the other: no array of edges x features x heads.
  bias = constant[relation]
  for f in range(width):
    bias = bias + features[:, f, None] * weight[:, f][relation]
  return bias
