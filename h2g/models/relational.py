"""Message passing with weights per relation: the shell of `Homogeneous` with operators that tell
relations apart, and a typed input map."""

import functools

from h2g.graph import Schema
from h2g.models.homogeneous import attention_layers
from h2g.models.homogeneous import Factory
from h2g.models.homogeneous import network
from h2g.nn.conv import HANConv
from h2g.nn.conv import RGATConv
from h2g.nn.conv import RGCNConv


@network(typed_input=True)
def rgcn(schema: Schema, dim: int = 256, num_layers: int = 2) -> list[Factory]:
  """Relational graph convolutional network, see `RGCNConv`. Source: arXiv 1703.06103."""
  return [functools.partial(RGCNConv, schema=schema, out_dim=dim)] * num_layers


@network(typed_input=True, typed_norm=True)
def rgraphsage(schema: Schema, dim: int = 256, num_layers: int = 2) -> list[Factory]:
  """One GraphSAGE per relation, added up; norms and maps of the node itself per node type.

  Source: arXiv 2407.10916 (`RGraphSAGE`), arXiv 1706.02216.
  """
  return [functools.partial(RGCNConv, schema=schema, out_dim=dim, typed=True)] * num_layers


@network(typed_input=True, typed_norm=True)
def rgat(
  schema: Schema, dim: int = 256, num_layers: int = 2, num_heads: int = 8, head_dim: int = 0
) -> list[Factory]:
  """One graph attention per relation, added up, see `RGATConv` and `attention_layers`; norms per
  node type.

  Source: arXiv 2407.10916 (`RGAT`), arXiv 1710.10903.
  """
  conv = functools.partial(RGATConv, schema=schema, num_heads=num_heads)
  return attention_layers(conv, dim, num_layers, num_heads, head_dim)


@network(typed_input=True, typed_norm=True)
def han(
  schema: Schema,
  dim: int = 256,
  num_layers: int = 1,
  num_heads: int = 8,
  attention_dropout: float = 0.5,
) -> list[Factory]:
  """Heterogeneous graph attention network, see `HANConv`; norms per node type.

  It is meant for the metapath graphs of the view "metapaths". H2GB's baseline reads the relations
  of the graph instead, as this does without the view.
  Source: arXiv 1903.07293.
  """
  conv = functools.partial(HANConv, schema=schema, out_dim=dim, num_heads=num_heads)
  return [functools.partial(conv, dropout_rate=attention_dropout)] * num_layers
