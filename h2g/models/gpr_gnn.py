"""GPR-GNN: predict first, then mix the predictions of every depth with learned weights."""

from flax import nnx
from jax import Array
import jax.numpy as jnp

from h2g.graph import HeteroGraph
from h2g.graph import Schema
from h2g.models.appnp import Predictor
from h2g.nn.conv import propagate


class GPRGNN(nnx.Module):
  """Z = sum_k gamma_k S^k MLP(x), gamma learned; at first that of APPNP. logits = Z + b.

  gamma_k = alpha (1 - alpha)^k, gamma_K = (1 - alpha)^K. The H2GB code instead starts from gamma =
  (0, 1, 0, ...); the paper's default is followed.
  Source: arXiv 2006.07988 eq. 1 and section 3.
  """

  reads_labels = False
  reads_relations = False

  def __init__(
    self,
    schema: Schema,
    *,
    dim: int = 256,
    num_layers: int = 2,
    num_steps: int = 10,
    alpha: float = 0.1,
    dropout_rate: float = 0.5,
    typed_input: bool = False,
    rngs: nnx.Rngs,
  ):
    self.predictor = Predictor(
      schema, dim, num_layers, dropout_rate=dropout_rate, typed_input=typed_input, rngs=rngs
    )
    weights = alpha * (1 - alpha) ** jnp.arange(num_steps + 1.0)
    self.gamma = nnx.Param(weights.at[-1].set((1 - alpha) ** num_steps))

  def __call__(
    self, graph: HeteroGraph, *, visible: Array | None = None, key: Array | None = None
  ) -> Array:
    """Returns logits [N_target, num_classes]; `visible` is ignored."""
    del visible
    gamma = self.gamma[...]
    z = self.predictor(graph, key=key)
    total = gamma[0] * z
    for k in range(1, gamma.shape[0]):
      z = propagate(z, graph)
      total = total + gamma[k] * z
    begin, end = graph.target_rows
    return total[begin:end] + self.predictor.bias[...][None, :]
