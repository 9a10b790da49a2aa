"""The shell that message-passing networks share, and those that are no more than an operator in it.

An operator (h2g.nn.conv) is one layer without norm and activation; the shell adds the rest. The
homogeneous ones forget types: the rows of all node types form one graph, all relations are one.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.errors import InputError
from h2g.graph import HeteroGraph
from h2g.graph import Schema
from h2g.nn import dropout
from h2g.nn import HeteroEncoder
from h2g.nn import SharedEncoder
from h2g.nn import split
from h2g.nn import TypedLayerNorm
from h2g.nn.conv import ACMConv
from h2g.nn.conv import GATConv
from h2g.nn.conv import GCNConv
from h2g.nn.conv import GINConv
from h2g.nn.conv import MixHopConv
from h2g.nn.conv import SAGEConv

Factory = Callable[..., nnx.Module]


def input_map(schema: Schema, dim: int, *, typed_input: bool = False, rngs: nnx.Rngs) -> nnx.Module:
  """The encoder of homogeneous models: one map for all types (`Raw` in H2GB), or one per type.

  A map per type quietly improves them. Where no type has features there is nothing to share, and
  each type gets one learned vector.
  """
  shared = any(schema.feature_dims) and not typed_input
  return (SharedEncoder if shared else HeteroEncoder)(schema, dim, rngs=rngs)


class Homogeneous(nnx.Module):
  """h = act(encoder(graph)); per layer h' = act(norm(conv(dropout(h)))) (+ h); linear head.

  Args of the constructor:
    schema: gives the target type and the number of classes.
    encoder: module graph -> [N, dim].
    dim: width of the encoded rows.
    convs: one factory per layer, `conv(in_dim, rngs=...)` -> operator (see h2g.nn.conv).
    norm: factory `(width, rngs=...)` of a module on rows, or None. The official settings with batch
      norm become layer norm here: no state is carried from step to step.
    typed_norm: layer norm with one scale and shift per node type instead.
    activation: after the encoder and after each norm.
    residual: each layer's input is added to its output; widths must agree.
    jumping_knowledge: the head reads all layers' outputs side by side (not the encoded rows).
    dropout_rate: before each operator.
  """

  reads_labels = False

  def __init__(
    self,
    schema: Schema,
    *,
    encoder: nnx.Module,
    dim: int,
    convs: Sequence[Factory],
    norm: Factory | None = nnx.LayerNorm,
    typed_norm: bool = False,
    activation: Callable[[Array], Array] = jax.nn.relu,
    residual: bool = False,
    jumping_knowledge: bool = False,
    dropout_rate: float = 0.5,
    rngs: nnx.Rngs,
  ):
    layers, widths = [], [dim]
    for conv in convs:
      layers.append(conv(widths[-1], rngs=rngs))
      widths.append(layers[-1].out_dim)
    if residual and len(set(widths)) > 1:
      raise InputError(f"residual needs layers of one width, they have {widths}")
    if typed_norm:
      norm = functools.partial(TypedLayerNorm, len(schema.node_types))
    self.encoder = encoder
    self.convs = nnx.List(layers)
    self.norms = nnx.List([norm(width, rngs=rngs) for width in widths[1:]] if norm else [])
    head_dim = sum(widths[1:]) if jumping_knowledge else widths[-1]
    self.head = nnx.Linear(head_dim, schema.num_classes, rngs=rngs)
    self.activation, self.dropout_rate = activation, dropout_rate
    self.residual, self.jumping_knowledge = residual, jumping_knowledge
    self.typed_norm = typed_norm

  @property
  def reads_relations(self) -> bool:
    """Whether an operator tells relations apart; otherwise the graph needs no typed messages."""
    return any(getattr(conv, "reads_relations", False) for conv in self.convs)

  def __call__(
    self, graph: HeteroGraph, *, visible: Array | None = None, key: Array | None = None
  ) -> Array:
    """Returns logits [N_target, num_classes]; `visible` is ignored."""
    del visible
    h = self.activation(self.encoder(graph))
    states = []
    offsets = (graph.node_offsets,) if self.typed_norm else ()
    for at, (conv, layer_key) in enumerate(zip(self.convs, split(key, len(self.convs)))):
      conv_key = None if key is None else jax.random.fold_in(layer_key, 1)
      update = conv(dropout(h, self.dropout_rate, layer_key), graph, key=conv_key)
      update = self.activation(self.norms[at](update, *offsets) if len(self.norms) else update)
      h = h + update if self.residual else update
      states.append(h)
    if self.jumping_knowledge:
      h = jnp.concatenate(states, axis=1)
    begin, end = graph.target_rows
    return self.head(h[begin:end])


def gcn(
  schema: Schema,
  *,
  dim: int = 256,
  num_layers: int = 2,
  dropout_rate: float = 0.5,
  typed_input: bool = False,
  rngs: nnx.Rngs,
) -> Homogeneous:
  """Graph convolutional network: h' = act(norm(S (h W + b))), S as in `GCNConv`.

  Source: arXiv 1609.02907 eq. 2.
  """
  return Homogeneous(
    schema,
    encoder=input_map(schema, dim, typed_input=typed_input, rngs=rngs),
    dim=dim,
    convs=[functools.partial(GCNConv, out_dim=dim, bias_first=True)] * num_layers,
    dropout_rate=dropout_rate,
    rngs=rngs,
  )


def graphsage(
  schema: Schema,
  *,
  dim: int = 256,
  num_layers: int = 2,
  dropout_rate: float = 0.5,
  typed_input: bool = False,
  rngs: nnx.Rngs,
) -> Homogeneous:
  """GraphSAGE with mean aggregation, see `SAGEConv`. Source: arXiv 1706.02216."""
  return Homogeneous(
    schema,
    encoder=input_map(schema, dim, typed_input=typed_input, rngs=rngs),
    dim=dim,
    convs=[functools.partial(SAGEConv, out_dim=dim)] * num_layers,
    dropout_rate=dropout_rate,
    rngs=rngs,
  )


def gat(
  schema: Schema,
  *,
  dim: int = 256,
  num_layers: int = 2,
  num_heads: int = 8,
  head_dim: int = 0,
  dropout_rate: float = 0.5,
  typed_input: bool = False,
  rngs: nnx.Rngs,
) -> Homogeneous:
  """Graph attention network: heads side by side, averaged in the last layer, see `GATConv`.

  `head_dim` 0 divides `dim` among the heads; the official settings have heads as wide as `dim`.
  Source: arXiv 1710.10903.
  """
  if not head_dim and dim % num_heads:
    raise InputError(f"num_heads={num_heads} does not divide dim={dim}; choose a divisor")
  layer = functools.partial(GATConv, head_dim=head_dim or dim // num_heads, num_heads=num_heads)
  last = functools.partial(GATConv, head_dim=head_dim or dim, num_heads=num_heads, concat=False)
  return Homogeneous(
    schema,
    encoder=input_map(schema, dim, typed_input=typed_input, rngs=rngs),
    dim=dim,
    convs=[layer] * (num_layers - 1) + [last],
    dropout_rate=dropout_rate,
    rngs=rngs,
  )


def gin(
  schema: Schema,
  *,
  dim: int = 256,
  num_layers: int = 2,
  dropout_rate: float = 0.5,
  typed_input: bool = False,
  rngs: nnx.Rngs,
) -> Homogeneous:
  """Graph isomorphism network, see `GINConv`. Source: arXiv 1810.00826."""
  return Homogeneous(
    schema,
    encoder=input_map(schema, dim, typed_input=typed_input, rngs=rngs),
    dim=dim,
    convs=[functools.partial(GINConv, out_dim=dim)] * num_layers,
    dropout_rate=dropout_rate,
    rngs=rngs,
  )


def mixhop(
  schema: Schema,
  *,
  dim: int = 256,
  num_layers: int = 2,
  max_power: int = 2,
  dropout_rate: float = 0.5,
  typed_input: bool = False,
  rngs: nnx.Rngs,
) -> Homogeneous:
  """MixHop, see `MixHopConv`: layers are (max_power + 1) `dim` wide, as in the official code.

  Source: arXiv 1905.00067.
  """
  return Homogeneous(
    schema,
    encoder=input_map(schema, dim, typed_input=typed_input, rngs=rngs),
    dim=dim,
    convs=[functools.partial(MixHopConv, power_dim=dim, max_power=max_power)] * num_layers,
    dropout_rate=dropout_rate,
    rngs=rngs,
  )


def acm_gcn(
  schema: Schema,
  *,
  dim: int = 256,
  num_layers: int = 2,
  dropout_rate: float = 0.5,
  typed_input: bool = False,
  rngs: nnx.Rngs,
) -> Homogeneous:
  """ACM-GCN: layers that mix low-pass, high-pass and identity per node, see `ACMConv`.

  No norm between layers. The official last layer gives logits itself; here a linear head follows.
  Source: arXiv 2210.07606.
  """
  return Homogeneous(
    schema,
    encoder=input_map(schema, dim, typed_input=typed_input, rngs=rngs),
    dim=dim,
    convs=[functools.partial(ACMConv, out_dim=dim)] * num_layers,
    norm=None,
    dropout_rate=dropout_rate,
    rngs=rngs,
  )
