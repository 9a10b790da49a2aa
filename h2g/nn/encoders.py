"""From raw node features, of a different width for every type, to rows of one hidden width.

Axes: N node rows of all types (type-sorted), F_t features of type t, G hidden width, C classes.
"""

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.errors import InputError
from h2g.graph import HeteroGraph
from h2g.graph import Schema

LINEAR_INIT = jax.nn.initializers.lecun_uniform()
EMBEDDING_INIT = jax.nn.initializers.uniform(0.04)


class HeteroEncoder(nnx.Module):
  """h_t = x_t W_t + b_t for each node type; a featureless type gets a learned embedding per node.

  Args of the constructor:
    schema: gives the types and their feature widths.
    dim: hidden width G.
    num_nodes: nodes per featureless type in the *whole* graph, {type: count}: rows of the embedding
      tables, which are read by `NodeSet.ids`. A featureless type that is not listed gets one
      learned vector for all of its nodes.
  Source: arXiv 2407.10916, heterogeneous feature encoder (`Hetero_Raw`).
  """

  def __init__(
    self, schema: Schema, dim: int, *, num_nodes: dict[str, int] | None = None, rngs: nnx.Rngs
  ):
    num_nodes = num_nodes or {}
    kernels, biases, tables = {}, {}, {}
    for node_type, width in zip(schema.node_types, schema.feature_dims):
      if width:
        kernels[node_type] = nnx.Param(LINEAR_INIT(rngs.params(), (width, dim), jnp.float32))
      if node_type in num_nodes or not width:
        rows = num_nodes.get(node_type, 1)
        tables[node_type] = nnx.Param(EMBEDDING_INIT(rngs.params(), (rows, dim), jnp.float32))
      biases[node_type] = nnx.Param(jnp.zeros(dim))
    self.kernel, self.bias, self.embedding = nnx.Dict(kernels), nnx.Dict(biases), nnx.Dict(tables)

  def __call__(self, graph: HeteroGraph, *, key: Array | None = None) -> Array:
    """Returns [N, G]: the encoded rows of all types, one type after another."""
    del key
    rows = []
    for node_type in graph.schema.node_types:
      nodes = graph.nodes[node_type]
      h = self.bias[node_type][...][None, :]
      if node_type in self.kernel:
        h = h + nodes.features @ self.kernel[node_type][...]
      if node_type in self.embedding:
        table = self.embedding[node_type][...]
        h = h + (table[nodes.ids] if table.shape[0] > 1 else table)
      rows.append(jnp.broadcast_to(h, (nodes.ids.shape[0], h.shape[1])))
    return jnp.concatenate(rows)


class SharedEncoder(nnx.Module):
  """One linear map for every type, features padded with zeros to the widest: h = pad(x) W + b.

  The input transformation of the homogeneous baselines (`Raw` in H2GB): a map per type would
  quietly improve them.
  """

  def __init__(self, schema: Schema, dim: int, *, rngs: nnx.Rngs):
    self.width = max(schema.feature_dims)
    if not self.width:
      raise InputError(
        "SharedEncoder needs at least one node type with features; use HeteroEncoder"
      )
    self.kernel = nnx.Param(LINEAR_INIT(rngs.params(), (self.width, dim), jnp.float32))
    self.bias = nnx.Param(jnp.zeros(dim))

  def __call__(self, graph: HeteroGraph, *, key: Array | None = None) -> Array:
    del key
    rows, kernel = [], self.kernel[...]
    for node_type in graph.schema.node_types:
      nodes = graph.nodes[node_type]
      if nodes.features is None:
        rows.append(jnp.zeros((nodes.ids.shape[0], kernel.shape[1])))
      else:  # what is padded meets rows of W that are left out
        rows.append(nodes.features @ kernel[: nodes.features.shape[1]])
    return jnp.concatenate(rows) + self.bias[...][None, :]


class LabelEmbedding(nnx.Module):
  """Masked label embedding: h[n] += W[c(n)] + b, c(n) the label where visible, else slot C
  (unknown).

  The caller decides which labels are visible; a node whose loss or metric is computed must not be
  among them (the official code lets 30 % of the training seeds see their own label).

  Attributes:
    kernel: [C + 1, G]; row C stands for "unknown".
    bias: [G].
  Source: arXiv 2407.10916, masked label embedding.
  """

  def __init__(self, num_classes: int, dim: int, *, rngs: nnx.Rngs):
    self.kernel = nnx.Param(LINEAR_INIT(rngs.params(), (num_classes + 1, dim), jnp.float32))
    self.bias = nnx.Param(jnp.zeros(dim))

  def __call__(self, labels: Array, visible: Array) -> Array:
    """Returns [N_target, G] from labels [N_target] int32 (-1 unlabelled) and visible [N_target]
    bool."""
    unknown = self.kernel.shape[0] - 1
    slots = jnp.where(visible & (labels >= 0), labels, unknown)
    return self.kernel[...][slots] + self.bias[...][None, :]


def split_labels(
  train: Array,
  key: Array,
  *,
  rate: float = 0.7,
  seeds: Array | None = None,
  own_label_visible: bool = False,
) -> tuple[Array, Array]:
  """Which training labels a step may read, and which nodes its loss counts.

  Without `seeds` (full batch): a random `rate` of the training nodes is counted, the labels of the
  others are visible. With `seeds` (sampled batch): the seeds are counted, and a random 1 - rate of
  the other training nodes' labels is visible. Either way no counted node's label is visible.

  Args:
    train: [N_target] bool, training nodes.
    key: PRNG key.
    rate: share of labels hidden.
    seeds: [N_target] bool, the sampled seed nodes, or None.
    own_label_visible: the official code's behaviour: hiding ignores which nodes are counted, so
      that a share 1 - rate of the counted nodes sees its own label.
  Returns:
    (visible, counted), both [N_target] bool.
  Source: arXiv 2407.10916, masked label embedding (rate 0.7).
  """
  hidden = jax.random.bernoulli(key, rate, train.shape)
  if own_label_visible:
    return train & ~hidden, train if seeds is None else train & seeds
  if seeds is None:
    return train & ~hidden, train & hidden
  return train & ~hidden & ~seeds, train & seeds
