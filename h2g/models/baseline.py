"""What the models have in common that learn from features and edges alone."""

from flax import nnx
from jax import Array

from h2g.graph import HeteroGraph


class Baseline(nnx.Module):
  """A model of a graph's target nodes that reads no labels. Same call as `UnifiedGT`.

  Classes give `logits`. `reads_relations` says whether they tell relations apart; otherwise the
  graph needs no typed messages.
  """

  reads_labels = False
  reads_relations = False

  def __call__(
    self, graph: HeteroGraph, *, visible: Array | None = None, key: Array | None = None
  ) -> Array:
    """Returns logits [N_target, num_classes]; `visible` is ignored, no key means no dropout."""
    del visible
    return self.logits(graph, key)

  def logits(self, graph: HeteroGraph, key: Array | None) -> Array:
    raise NotImplementedError
