"""GraphTrans: a graph network, then a transformer over all nodes."""

import functools

from flax import nnx

from h2g.errors import InputError
from h2g.graph import Schema
from h2g.models.homogeneous import input_map
from h2g.models.unified_gt import shared
from h2g.models.unified_gt import UnifiedGT
from h2g.nn import TypedFFN
from h2g.nn.full_attention import FullAttention
from h2g.nn.structure import GNNEncoder


def graphtrans(
  schema: Schema,
  *,
  dim: int = 256,
  gnn_dim: int = 128,
  num_gnn_layers: int = 3,
  num_layers: int = 3,
  num_heads: int = 8,
  max_keys: int = 1024,
  dropout_rate: float = 0.2,
  attention_dropout: float = 0.0,
  typed_input: bool = False,
  rngs: nnx.Rngs,
) -> UnifiedGT:
  """UnifiedGT without types: [x | GNN(x)], then layers of full attention with one FFN for all.

  x is `dim - gnn_dim` wide. The paper reads the GNN's rows alone and adds a token for the whole
  graph; H2GB's setting, followed here, keeps x beside them and has no such token. Each node attends
  to at most `max_keys` nodes, see `FullAttention`; the official code attends to all of a sample.
  Source: arXiv 2201.08821; arXiv 2407.10916 (its setting of UnifiedGT).
  """
  if not 0 < gnn_dim < dim:
    raise InputError(f"gnn_dim={gnn_dim} is a part of dim={dim}: give less, and more than 0")
  encoder = GNNEncoder(
    input_map(schema, dim - gnn_dim, typed_input=typed_input, rngs=rngs),
    dim - gnn_dim,
    gnn_dim,
    num_layers=num_gnn_layers,
    dropout_rate=dropout_rate,
    rngs=rngs,
  )
  model = UnifiedGT(
    schema,
    encoder=encoder,
    dim=dim,
    num_layers=num_layers,
    num_heads=num_heads,
    pre=None,
    attention=functools.partial(FullAttention, max_keys=max_keys, dropout_rate=attention_dropout),
    ffn=shared(functools.partial(TypedFFN, dropout_rate=dropout_rate)),
    label_embedding=False,
    dropout_rate=dropout_rate,
    rngs=rngs,
  )
  model.reads_relations = False
  return model
