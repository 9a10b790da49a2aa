"""Message passing with weights per relation: the shell of `Homogeneous` with operators that tell
relations apart, and a typed input map."""

import functools

from flax import nnx

from h2g.errors import InputError
from h2g.graph import Schema
from h2g.models.homogeneous import Homogeneous
from h2g.nn import HeteroEncoder
from h2g.nn.conv import HANConv
from h2g.nn.conv import RGATConv
from h2g.nn.conv import RGCNConv


def rgcn(
  schema: Schema,
  *,
  dim: int = 256,
  num_layers: int = 2,
  dropout_rate: float = 0.5,
  rngs: nnx.Rngs,
) -> Homogeneous:
  """Relational graph convolutional network, see `RGCNConv`. Source: arXiv 1703.06103."""
  return Homogeneous(
    schema,
    encoder=HeteroEncoder(schema, dim, rngs=rngs),
    dim=dim,
    convs=[functools.partial(RGCNConv, schema=schema, out_dim=dim)] * num_layers,
    dropout_rate=dropout_rate,
    rngs=rngs,
  )


def rgraphsage(
  schema: Schema,
  *,
  dim: int = 256,
  num_layers: int = 2,
  dropout_rate: float = 0.5,
  rngs: nnx.Rngs,
) -> Homogeneous:
  """One GraphSAGE per relation, added up; norms and maps of the node itself per node type.

  Source: arXiv 2407.10916 (`RGraphSAGE`), arXiv 1706.02216.
  """
  return Homogeneous(
    schema,
    encoder=HeteroEncoder(schema, dim, rngs=rngs),
    dim=dim,
    convs=[functools.partial(RGCNConv, schema=schema, out_dim=dim, typed=True)] * num_layers,
    typed_norm=True,
    dropout_rate=dropout_rate,
    rngs=rngs,
  )


def rgat(
  schema: Schema,
  *,
  dim: int = 256,
  num_layers: int = 2,
  num_heads: int = 8,
  head_dim: int = 0,
  dropout_rate: float = 0.5,
  rngs: nnx.Rngs,
) -> Homogeneous:
  """One graph attention per relation, added up, see `RGATConv`; norms per node type.

  Heads stand side by side and are averaged in the last layer. `head_dim` 0 divides `dim` among the
  heads; the official settings have heads as wide as `dim`.
  Source: arXiv 2407.10916 (`RGAT`), arXiv 1710.10903.
  """
  if not head_dim and dim % num_heads:
    raise InputError(f"num_heads={num_heads} does not divide dim={dim}; choose a divisor")
  conv = functools.partial(RGATConv, schema=schema, num_heads=num_heads)
  layer = functools.partial(conv, head_dim=head_dim or dim // num_heads)
  last = functools.partial(conv, head_dim=head_dim or dim, concat=False)
  return Homogeneous(
    schema,
    encoder=HeteroEncoder(schema, dim, rngs=rngs),
    dim=dim,
    convs=[layer] * (num_layers - 1) + [last],
    typed_norm=True,
    dropout_rate=dropout_rate,
    rngs=rngs,
  )


def han(
  schema: Schema,
  *,
  dim: int = 256,
  num_layers: int = 1,
  num_heads: int = 8,
  dropout_rate: float = 0.5,
  attention_dropout: float = 0.5,
  rngs: nnx.Rngs,
) -> Homogeneous:
  """Heterogeneous graph attention network, see `HANConv`; norms per node type.

  It is meant for the metapath graphs of the view "metapaths". H2GB's baseline reads the relations
  of the graph instead, as this does without the view.
  Source: arXiv 1903.07293.
  """
  if dim % num_heads:
    raise InputError(f"num_heads={num_heads} does not divide dim={dim}; choose a divisor")
  conv = functools.partial(HANConv, schema=schema, out_dim=dim, num_heads=num_heads)
  return Homogeneous(
    schema,
    encoder=HeteroEncoder(schema, dim, rngs=rngs),
    dim=dim,
    convs=[functools.partial(conv, dropout_rate=attention_dropout)] * num_layers,
    typed_norm=True,
    dropout_rate=dropout_rate,
    rngs=rngs,
  )
