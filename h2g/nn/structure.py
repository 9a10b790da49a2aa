"""Encoders of where a node stands: its type, degree, distances and surroundings.

Encoders are called `encoder(graph, key=None) -> [N, dim]`; `SumEncoder` adds several up. Encodings
that are computed once on the host (Laplacian, random walks) are columns of the features instead,
see `h2g.graph.encodings`.
"""

from collections.abc import Sequence

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.graph import HeteroGraph
from h2g.graph import Schema
from h2g.nn.conv import GCNConv
from h2g.nn.dropout import dropout
from h2g.nn.dropout import split
from h2g.nn.pair_bias import hop_distance
from h2g.nn.typed import type_ids

INIT = jax.nn.initializers.normal(0.02)


class SumEncoder(nnx.Module):
  """The sum of several encoders' rows."""

  def __init__(self, parts: Sequence[nnx.Module]):
    self.parts = nnx.List(parts)

  def __call__(self, graph: HeteroGraph, *, key: Array | None = None) -> Array:
    keys = split(key, len(self.parts))
    return sum(part(graph, key=part_key) for part, part_key in zip(self.parts, keys))


class TypeEmbedding(nnx.Module):
  """h = E[t]: one learned vector per node type."""

  def __init__(self, schema: Schema, dim: int, *, rngs: nnx.Rngs):
    self.table = nnx.Param(INIT(rngs.params(), (len(schema.node_types), dim), jnp.float32))

  def __call__(self, graph: HeteroGraph, *, key: Array | None = None) -> Array:
    del key
    return self.table[...][type_ids(graph.node_offsets)]


class DegreeEncoder(nnx.Module):
  """h = E_in[min(in-degree, limit)] + E_out[min(out-degree, limit)], all relations as one.

  Source: arXiv 2106.05234 eq. 5 (centrality encoding).
  """

  def __init__(self, schema: Schema, dim: int, *, limit: int = 64, rngs: nnx.Rngs):
    del schema
    self.table = nnx.Param(INIT(rngs.params(), (2, limit + 1, dim), jnp.float32))
    self.limit = limit

  def __call__(self, graph: HeteroGraph, *, key: Array | None = None) -> Array:
    del key
    index = graph.incoming
    arriving = jnp.diff(index.indptr)
    leaving = jnp.diff(index.sender_indptr)  # of message rows: one per relation and source
    total, at = jnp.zeros_like(arriving), graph.message_offsets
    for r, (source, _, _) in enumerate(graph.schema.edge_types):
      total = total.at[slice(*graph.rows(source))].add(leaving[at[r] : at[r + 1]])
    table, clip = self.table[...], lambda degree: jnp.minimum(degree, self.limit)
    return table[0][clip(arriving)] + table[1][clip(total)]


class HopDistanceEncoder(nnx.Module):
  """h_n = mean over the target nodes a of E[min(d(n, a), hops + 1)], d the edges from a to n.

  H2GB's `Hetero_SDPE` sums over the seeds of a batch; here all target nodes of the (sampled) graph
  count. For samples and small graphs, see `h2g.nn.pair_bias`.
  """

  def __init__(self, schema: Schema, dim: int, *, hops: int = 3, rngs: nnx.Rngs):
    del schema
    self.table = nnx.Param(INIT(rngs.params(), (hops + 2, dim), jnp.float32))
    self.hops = hops

  def __call__(self, graph: HeteroGraph, *, key: Array | None = None) -> Array:
    del key
    distance = hop_distance(graph, self.hops)[:, slice(*graph.target_rows)]
    real = graph.nodes[graph.schema.target].mask.astype(jnp.float32)
    hops = jnp.arange(self.hops + 2)
    shares = [(distance == hop).astype(jnp.float32) @ real for hop in hops]
    return jnp.stack(shares, 1) / jnp.maximum(real.sum(), 1.0) @ self.table[...]


class GNNEncoder(nnx.Module):
  """[x | GNN(x)], x = encoder(graph): the rows of an encoder beside those of a GNN on them.

  The GNN: y = relu(LN(x W)), then per layer y = dropout(relu(LN(conv(y)))). H2GB's `Hetero_GNN`
  has one convolution per relation; here all relations are one, as in its `Homo_GNN`.

  Args of the constructor: `encoder` of width `in_dim`; `dim`, the width of the GNN; `conv`, a
  factory `(in_dim, out_dim=, rngs=)` of an operator of h2g.nn.conv.
  """

  def __init__(
    self,
    encoder: nnx.Module,
    in_dim: int,
    dim: int,
    *,
    num_layers: int = 3,
    conv=GCNConv,
    dropout_rate: float = 0.2,
    rngs: nnx.Rngs,
  ):
    self.encoder, self.dropout_rate = encoder, dropout_rate
    self.pre, self.pre_norm = nnx.Linear(in_dim, dim, rngs=rngs), nnx.LayerNorm(dim, rngs=rngs)
    self.convs = nnx.List([conv(dim, out_dim=dim, rngs=rngs) for _ in range(num_layers)])
    self.norms = nnx.List([nnx.LayerNorm(dim, rngs=rngs) for _ in range(num_layers)])

  def __call__(self, graph: HeteroGraph, *, key: Array | None = None) -> Array:
    own_key, *keys = split(key, 1 + len(self.convs))
    x = self.encoder(graph, key=own_key)
    y = jax.nn.relu(self.pre_norm(self.pre(x)))
    for conv, norm, layer_key in zip(self.convs, self.norms, keys):
      y = dropout(jax.nn.relu(norm(conv(y, graph))), self.dropout_rate, layer_key)
    return jnp.concatenate([x, y], axis=1)
