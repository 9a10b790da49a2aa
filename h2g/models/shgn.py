"""Simple-HGN: graph attention with embeddings of edge types and two kinds of residuals."""

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.graph import HeteroGraph
from h2g.graph import Schema
from h2g.models.baseline import Baseline
from h2g.nn import HeteroEncoder
from h2g.nn import split
from h2g.nn.conv import SHGNConv
from h2g.nn.widths import head_width


class SHGN(Baseline):
  """h_0 = encoder(graph);  h_l = elu(SHGNConv_l(h_{l-1})), the last without elu, its heads as wide
  as there are classes and averaged; logits = y / |y| with `normalise`.

  Every layer but the first has a residual, and takes up the attention of the one before (the
  official last layer does not; in H2GB's code none does). `head_dim` 0 divides `dim` among the
  heads; the official settings have heads as wide as `dim`.
  Source: arXiv 2112.14936 section 5.
  """

  reads_relations = True

  def __init__(
    self,
    schema: Schema,
    *,
    dim: int = 128,
    num_layers: int = 3,
    num_heads: int = 8,
    head_dim: int = 0,
    edge_dim: int = 64,
    beta: float = 0.05,
    normalise: bool = True,
    dropout_rate: float = 0.2,
    attention_dropout: float = 0.2,
    rngs: nnx.Rngs,
  ):
    self.encoder = HeteroEncoder(schema, dim, rngs=rngs)
    head_dim = head_width(dim, num_heads, head_dim)
    convs, width = [], dim
    for at in range(num_layers):
      conv = SHGNConv(
        width,
        schema=schema,
        head_dim=head_dim if at + 1 < num_layers else schema.num_classes,
        num_heads=num_heads,
        edge_dim=edge_dim,
        beta=beta,
        residual=at > 0,
        dropout_rate=dropout_rate,
        attention_dropout=attention_dropout,
        rngs=rngs,
      )
      convs.append(conv)
      width = conv.out_dim
    self.convs = nnx.List(convs)
    self.num_heads, self.normalise = num_heads, normalise

  def logits(self, graph: HeteroGraph, key: Array | None) -> Array:
    h, p = self.encoder(graph), None
    for at, (conv, layer_key) in enumerate(zip(self.convs, split(key, len(self.convs)))):
      h, p = conv(h if at == 0 else jax.nn.elu(h), graph, before=p, key=layer_key)
    begin, end = graph.target_rows
    logits = h[begin:end].reshape(end - begin, self.num_heads, -1).mean(1)
    if not self.normalise:
      return logits
    square = jnp.sum(logits**2, axis=1, keepdims=True)
    return logits * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
