"""UnifiedGT, the modular graph transformer of H2GB, and H2G-former, its best instance.

Every part is a value passed in: an encoder module, and for each layer a factory of the attention,
the local operator, the feed-forward, the residual and the norm. A factory takes `(num_types, dim,
rngs=...)`, the attention's `(schema, dim, num_heads, rngs=...)`, the local operator's `(dim,
rngs=...)`; None leaves the part out. What there is to choose from:

  encoder    HeteroEncoder, SharedEncoder, and of h2g.nn.structure TypeEmbedding, DegreeEncoder,
             HopDistanceEncoder, GNNEncoder; SumEncoder adds them up
  attention  along edges: CrossTypeAttention (maps per node type, hop_bias with the view
             "strict_2hop"), EdgeTypeAttention (maps per relation); over all pairs: FullAttention,
             whose biases (h2g.nn.pair_bias) are masks (EdgeMask, HopBias) or distances
  local      any operator of h2g.nn.conv, with functools.partial(conv, out_dim=dim)
  ffn        TypedFFN (one per type), shared(TypedFFN) (one for all)
  residual   FixedResidual, LearnedResidual, ConcatResidual, NoResidual
  norm       TypedLayerNorm, TypedBatchNorm; shared(...) for one set of parameters

Virtual nodes, Laplacian and random-walk encodings and embeddings (metapath2vec, node2vec, TransE)
belong to the graph: `config.data`.

Source: arXiv 2407.10916 section 4.
"""

from collections.abc import Callable
import functools

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.graph import HeteroGraph
from h2g.graph import Schema
from h2g.nn import CrossTypeAttention
from h2g.nn import dropout
from h2g.nn import FixedResidual
from h2g.nn import HeteroEncoder
from h2g.nn import LabelEmbedding
from h2g.nn import split
from h2g.nn import TypedFFN
from h2g.nn import TypedLayerNorm
from h2g.nn import TypedLinear

Factory = Callable[..., nnx.Module]


def identity(x: Array, offsets: tuple[int, ...], mask: Array | None = None) -> Array:
  """The absent norm."""
  del offsets, mask
  return x


class _Shared(nnx.Module):
  """A part for one type, called with the rows of all types."""

  def __init__(self, part: nnx.Module):
    self.part = part

  def __call__(self, x: Array, offsets: tuple[int, ...], *args, **kwargs) -> Array:
    del offsets
    return self.part(x, (0, x.shape[0]), *args, **kwargs)


def shared(factory: Factory) -> Factory:
  """The same part with one set of parameters for all node types."""
  return lambda num_types, dim, *, rngs: _Shared(factory(1, dim, rngs=rngs))


class GTLayer(nnx.Module):
  """One pre-norm layer: h' = residual(h, dropout(attention(norm(h)))); z = norm'(h'); z + FFN(z).

  The residual of the feed-forward starts after its norm, as in the official code. A local operator
  stands beside the attention with a norm and a residual of its own, and the two are added up: h' =
  residual(h, dropout(attention(norm(h)))) + residual(h, dropout(local(norm(h)))), as in GraphGPS
  (arXiv 2205.12454 eq. 4-7); the official code feeds the local norm's rows to the attention's norm.
  """

  def __init__(
    self,
    schema: Schema,
    dim: int,
    num_heads: int,
    *,
    attention: Factory | None,
    local: Factory | None,
    ffn: Factory | None,
    residual: Factory,
    norm: Factory | None,
    dropout_rate: float,
    rngs: nnx.Rngs,
  ):
    num_types = len(schema.node_types)
    self.attention = attention(schema, dim, num_heads, rngs=rngs) if attention else None
    self.ffn = ffn(num_types, dim, rngs=rngs) if ffn else None
    self.residual = residual(num_types, dim, rngs=rngs)
    self.norm = norm(num_types, dim, rngs=rngs) if norm else identity
    self.ffn_norm = norm(num_types, dim, rngs=rngs) if norm else identity
    self.local = local(dim, rngs=rngs) if local else None
    self.local_residual = residual(num_types, dim, rngs=rngs) if local else None
    self.local_norm = norm(num_types, dim, rngs=rngs) if local and norm else identity
    self.dropout_rate = dropout_rate

  def __call__(self, h: Array, graph: HeteroGraph, *, key: Array | None) -> Array:
    attention_key, dropout_key, ffn_key = split(key, 3)
    offsets, mask, parts = graph.node_offsets, graph.row_mask, []
    if self.attention is not None:
      update = self.attention(self.norm(h, offsets, mask), graph, key=attention_key)
      parts.append(self.residual(h, dropout(update, self.dropout_rate, dropout_key), offsets))
    if self.local is not None:
      local_key = None if key is None else jax.random.fold_in(dropout_key, 1)
      update = self.local(self.local_norm(h, offsets, mask), graph, key=local_key)
      parts.append(self.local_residual(h, dropout(update, self.dropout_rate, local_key), offsets))
    h = self.ffn_norm(sum(parts[1:], start=parts[0]) if parts else h, offsets, mask)
    return h if self.ffn is None else h + self.ffn(h, offsets, key=ffn_key)


class UnifiedGT(nnx.Module):
  """Encode, embed visible labels, per-type pre-layer, L layers, linear head on the target type.

  Args of the constructor:
    schema: static description of the graphs this network reads.
    encoder: module graph -> [N, dim].
    dim, num_layers, num_heads: hidden width, depth, heads.
    pre: factory `(num_types, dim, dim, rngs=...)` of the pre-layer's map, which the norm and the
      activation follow; None goes without.
    attention, local, ffn, residual, norm: factories, see the module's docstring.
    label_embedding: whether visible labels of the target type are embedded.
    jumping_knowledge: the head reads all layers' outputs side by side.
    input_dropout, dropout_rate: probabilities.
    activation: of the pre-layer.
  """

  reads_relations = True

  def __init__(
    self,
    schema: Schema,
    *,
    encoder: nnx.Module,
    dim: int = 256,
    num_layers: int = 3,
    num_heads: int = 8,
    pre: Factory | None = TypedLinear,
    attention: Factory | None = CrossTypeAttention,
    local: Factory | None = None,
    ffn: Factory | None = TypedFFN,
    residual: Factory = FixedResidual,
    norm: Factory | None = TypedLayerNorm,
    label_embedding: bool = True,
    jumping_knowledge: bool = False,
    input_dropout: float = 0.0,
    dropout_rate: float = 0.2,
    activation: Callable[[Array], Array] = jax.nn.gelu,
    rngs: nnx.Rngs,
  ):
    num_types = len(schema.node_types)
    self.encoder = encoder
    self.labels = LabelEmbedding(schema.num_classes, dim, rngs=rngs) if label_embedding else None
    self.pre = pre(num_types, dim, dim, rngs=rngs) if pre else None
    self.pre_norm = norm(num_types, dim, rngs=rngs) if pre and norm else identity
    self.layers = nnx.List(
      [
        GTLayer(
          schema,
          dim,
          num_heads,
          attention=attention,
          local=local,
          ffn=ffn,
          residual=residual,
          norm=norm,
          dropout_rate=dropout_rate,
          rngs=rngs,
        )
        for _ in range(num_layers)
      ]
    )
    head_dim = dim * (num_layers + 1) if jumping_knowledge else dim
    self.head = nnx.Linear(head_dim, schema.num_classes, rngs=rngs)
    self.jumping_knowledge = jumping_knowledge
    self.input_dropout = input_dropout
    self.activation = activation

  @property
  def reads_labels(self) -> bool:
    """Whether visible labels change the logits: the trainer then hides those it predicts."""
    return self.labels is not None

  def __call__(
    self, graph: HeteroGraph, *, visible: Array | None = None, key: Array | None = None
  ) -> Array:
    """Logits of the target type.

    Args:
      graph: with `incoming` built (`graph.with_incoming()`), one schema with the constructor's.
      visible: [N_target] bool, whose labels may be read; None: none. A node that is predicted must
        be False here.
      key: PRNG key of dropout; None evaluates.
    Returns:
      [N_target, num_classes] float32.
    """
    input_key, *layer_keys = split(key, 1 + len(self.layers))
    states = [self.embed(graph, visible=visible, key=input_key)]
    for layer, layer_key in zip(self.layers, layer_keys):
      states.append(layer(states[-1], graph, key=layer_key))
    h = jnp.concatenate(states, axis=-1) if self.jumping_knowledge else states[-1]
    return self.head(h[slice(*graph.target_rows)])

  def embed(
    self, graph: HeteroGraph, *, visible: Array | None = None, key: Array | None = None
  ) -> Array:
    """What the first layer reads, [N, dim]: features and visible labels, after the pre-layer."""
    offsets = graph.node_offsets
    encoder_key = None if key is None else jax.random.fold_in(key, 1)
    h = self.encoder(graph, key=encoder_key)
    if self.labels is not None:
      begin, end = graph.target_rows
      visible = jnp.zeros(graph.target_labels.shape, bool) if visible is None else visible
      h = h.at[begin:end].add(self.labels(graph.target_labels, visible))
    h = dropout(h, self.input_dropout, key)
    if self.pre is None:
      return h
    return self.activation(self.pre_norm(self.pre(h, offsets), offsets, graph.row_mask))

  def attention_weights(self, graph: HeteroGraph, *, visible: Array | None = None) -> list[Array]:
    """The softmax weights of every layer, each [E, H] in receiver order, for looking at."""
    h, weights = self.embed(graph, visible=visible), []
    for layer in self.layers:
      x = layer.norm(h, graph.node_offsets, graph.row_mask)
      weights.append(layer.attention.attend(x, graph, return_weights=True).weights)
      h = layer(h, graph, key=None)
    return weights


def h2g_former(
  schema: Schema,
  *,
  dim: int = 256,
  num_layers: int = 3,
  num_heads: int = 8,
  dropout_rate: float = 0.2,
  attention_dropout: float = 0.0,
  input_dropout: float = 0.0,
  key_weights: bool = True,
  value_weights: bool = False,
  edge_bias: bool = False,
  specialise: float = 0.0,
  clip: float | None = 5.0,
  typed_ffn: bool = True,
  label_embedding: bool = True,
  num_embeddings: dict[str, int] | None = None,
  rngs: nnx.Rngs,
) -> UnifiedGT:
  """H2G-former: masked label embedding + cross-type attention + type-specific FFN.

  Defaults are the published settings; `num_embeddings` is `HeteroEncoder`'s `num_nodes`. The three
  ablations of the paper are `label_embedding=False`, `key_weights=False`, `typed_ffn=False`.
  Source: arXiv 2407.10916 section 4.3.
  """
  attention = functools.partial(
    CrossTypeAttention,
    key_weights=key_weights,
    value_weights=value_weights,
    edge_bias=edge_bias,
    specialise=specialise,
    clip=clip,
    dropout_rate=attention_dropout,
  )
  ffn = functools.partial(TypedFFN, dropout_rate=dropout_rate)
  if not typed_ffn:
    ffn = shared(ffn)
  return UnifiedGT(
    schema,
    encoder=HeteroEncoder(schema, dim, num_nodes=num_embeddings, rngs=rngs),
    dim=dim,
    num_layers=num_layers,
    num_heads=num_heads,
    attention=attention,
    ffn=ffn,
    label_embedding=label_embedding,
    input_dropout=input_dropout,
    dropout_rate=dropout_rate,
    rngs=rngs,
  )
