"""Simple graph convolution: propagation, then one linear map."""

from flax import nnx
from jax import Array

from h2g.graph import HeteroGraph
from h2g.graph import Schema
from h2g.models.baseline import Baseline
from h2g.models.homogeneous import input_map
from h2g.nn.conv import propagate


class SGC(Baseline):
  """logits = S^K (h W) + b, h the encoded features, S as in `GCNConv`; no activation anywhere.

  W acts first: the same by linearity, and what travels is as wide as the classes are many. The
  input map (linear too) stands before it as in H2GB, where `+1Hop` and `+2Hop` are K = 1 and 2.
  Source: arXiv 1902.07153 eq. 8.
  """

  def __init__(
    self,
    schema: Schema,
    *,
    dim: int = 256,
    hops: int = 2,
    typed_input: bool = False,
    rngs: nnx.Rngs,
  ):
    self.encoder = input_map(schema, dim, typed_input=typed_input, rngs=rngs)
    self.head = nnx.Linear(dim, schema.num_classes, rngs=rngs)
    self.hops = hops

  def logits(self, graph: HeteroGraph, key: Array | None) -> Array:
    del key
    h = self.encoder(graph) @ self.head.kernel[...]
    for _ in range(self.hops):
      h = propagate(h, graph)
    begin, end = graph.target_rows
    return h[begin:end] + self.head.bias[...][None, :]
