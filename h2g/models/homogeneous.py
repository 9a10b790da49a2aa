"""The shell that message-passing networks share, and those that are no more than an operator in it.

An operator (h2g.nn.conv) is one layer without norm and activation; the shell adds the rest. The
homogeneous ones forget types: the rows of all node types form one graph, all relations are one.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
import inspect

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.errors import InputError
from h2g.graph import HeteroGraph
from h2g.graph import Schema
from h2g.models.baseline import Baseline
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
from h2g.nn.widths import head_width

Factory = Callable[..., nnx.Module]


def input_map(schema: Schema, dim: int, *, typed_input: bool = False, rngs: nnx.Rngs) -> nnx.Module:
  """The encoder of homogeneous models: one map for all types (`Raw` in H2GB), or one per type.

  A map per type quietly improves them. Where no type has features there is nothing to share, and
  each type gets one learned vector.
  """
  shared = any(schema.feature_dims) and not typed_input
  return (SharedEncoder if shared else HeteroEncoder)(schema, dim, rngs=rngs)


class Homogeneous(Baseline):
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

  def logits(self, graph: HeteroGraph, key: Array | None) -> Array:
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


def network(*, typed_input: bool = False, **shell) -> Callable[[Callable], Callable]:
  """Makes a model's constructor of a function that gives its layers.

  The function is `layers(schema, dim, num_layers, ...)` and returns one factory per layer, see
  `Homogeneous`. The constructor is `(schema, *, dim=256, num_layers=2, ..., dropout_rate=0.5,
  typed_input=..., rngs)`: the function's own settings by keyword, and what all models have.

  Args:
    typed_input: its default, see `input_map`.
    shell: arguments of `Homogeneous` that are not settings of the model.
  """

  def decorate(layers: Callable) -> Callable[..., Homogeneous]:
    def make(
      schema: Schema,
      *,
      dropout_rate: float = 0.5,
      typed_input: bool = typed_input,
      rngs: nnx.Rngs,
      **own,
    ) -> Homogeneous:
      own = {**defaults, **own}
      convs = layers(schema, **own)
      encoder = input_map(schema, own["dim"], typed_input=typed_input, rngs=rngs)
      return Homogeneous(
        schema,
        encoder=encoder,
        dim=own["dim"],
        convs=convs,
        dropout_rate=dropout_rate,
        rngs=rngs,
        **shell,
      )

    settings = inspect.signature(layers).parameters
    defaults = {name: settings[name].default for name in settings if name != "schema"}
    by_keyword = [p.replace(kind=p.KEYWORD_ONLY) for p in settings.values() if p.name in defaults]
    shared = list(inspect.signature(make).parameters.values())[:-1]  # without **own
    make = functools.wraps(layers)(make)
    make.__signature__ = inspect.Signature(
      [shared[0], *by_keyword, *shared[1:]], return_annotation=Homogeneous
    )
    return make

  return decorate


@network()
def gcn(schema: Schema, dim: int = 256, num_layers: int = 2) -> list[Factory]:
  """Graph convolutional network: h' = act(norm(S (h W + b))), S as in `GCNConv`.

  Source: arXiv 1609.02907 eq. 2.
  """
  return [functools.partial(GCNConv, out_dim=dim, bias_first=True)] * num_layers


@network()
def graphsage(schema: Schema, dim: int = 256, num_layers: int = 2) -> list[Factory]:
  """GraphSAGE with mean aggregation, see `SAGEConv`. Source: arXiv 1706.02216."""
  return [functools.partial(SAGEConv, out_dim=dim)] * num_layers


@network()
def gat(
  schema: Schema, dim: int = 256, num_layers: int = 2, num_heads: int = 8, head_dim: int = 0
) -> list[Factory]:
  """Graph attention network, see `GATConv` and `attention_layers`. Source: arXiv 1710.10903."""
  conv = functools.partial(GATConv, num_heads=num_heads)
  return attention_layers(conv, dim, num_layers, num_heads, head_dim)


@network()
def gin(schema: Schema, dim: int = 256, num_layers: int = 2) -> list[Factory]:
  """Graph isomorphism network, see `GINConv`. Source: arXiv 1810.00826."""
  return [functools.partial(GINConv, out_dim=dim)] * num_layers


@network()
def mixhop(
  schema: Schema, dim: int = 256, num_layers: int = 2, max_power: int = 2
) -> list[Factory]:
  """MixHop, see `MixHopConv`: layers are (max_power + 1) `dim` wide, as in the official code.

  Source: arXiv 1905.00067.
  """
  return [functools.partial(MixHopConv, power_dim=dim, max_power=max_power)] * num_layers


@network(norm=None)
def acm_gcn(schema: Schema, dim: int = 256, num_layers: int = 2) -> list[Factory]:
  """ACM-GCN: layers that mix low-pass, high-pass and identity per node, see `ACMConv`.

  No norm between layers. The official last layer gives logits itself; here a linear head follows.
  Source: arXiv 2210.07606.
  """
  return [functools.partial(ACMConv, out_dim=dim)] * num_layers


def attention_layers(
  conv: Factory, dim: int, num_layers: int, num_heads: int, head_dim: int
) -> list[Factory]:
  """Heads stand side by side, `dim` wide together, and are averaged in the last layer.

  Args:
    conv: `(in_dim, head_dim=, concat=, rngs=)`.
    dim, num_layers, num_heads: of the network.
    head_dim: 0 divides `dim` among the heads; the official settings have heads as wide as `dim`.
  Raises:
    InputError: the heads do not divide `dim`.
  """
  layer = functools.partial(conv, head_dim=head_width(dim, num_heads, head_dim))
  last = functools.partial(conv, head_dim=head_dim or dim, concat=False)
  return [layer] * (num_layers - 1) + [last]
