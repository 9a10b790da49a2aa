"""Label propagation: no parameters, no features, only labels that travel."""

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.graph import HeteroGraph
from h2g.graph import Schema
from h2g.nn.conv import propagate


class LabelPropagation(nnx.Module):
  """F_0 = Y, F <- alpha S^hops F + (1 - alpha) Y, repeated; Y the one-hot visible labels.

  S is the symmetric normalisation over all relations as one. Given are log((F + floor) / sum),
  which rank like F: a node that no label reaches gets equal logits. There is nothing to train: the
  labels that may be read come with the call, so the first step is as good as the last.

  Args of the constructor:
    schema: gives the target type and the number of classes.
    alpha: share of what arrives.
    num_steps: repetitions.
    hops: powers of S in each; how the official code makes LP+2Hop on the whole graph. On the
      target-induced graph (`config.data.view`) it is 1.
    self_loops: as in the official code; PyG's `LabelPropagation` has none.
    floor: keeps the logarithm finite.
  Source: Zhou et al. 2004, Learning with local and global consistency.
  """

  reads_labels = True
  reads_relations = False

  def __init__(
    self,
    schema: Schema,
    *,
    alpha: float = 0.1,
    num_steps: int = 50,
    hops: int = 1,
    self_loops: bool = True,
    floor: float = 1e-6,
    rngs: nnx.Rngs,
  ):
    del rngs
    self.num_classes, self.floor = schema.num_classes, floor
    self.alpha, self.num_steps, self.hops = alpha, num_steps, hops
    self.self_loops = self_loops

  def __call__(
    self, graph: HeteroGraph, *, visible: Array | None = None, key: Array | None = None
  ) -> Array:
    """Returns logits [N_target, num_classes]; without `visible` they are all equal."""
    del key
    scores = self.scores(graph, visible) + self.floor
    return jnp.log(scores) - jnp.log(scores.sum(-1, keepdims=True))

  def scores(self, graph: HeteroGraph, visible: Array | None) -> Array:
    """F, [N_target, num_classes] in [0, 1]."""
    begin, end = graph.target_rows
    labels = graph.target_labels
    known = jnp.zeros(labels.shape, bool) if visible is None else visible & (labels >= 0)
    given = jnp.where(known[:, None], jax.nn.one_hot(labels, self.num_classes), 0.0)
    y = jnp.zeros((graph.node_offsets[-1], self.num_classes)).at[begin:end].set(given)

    def step(_, f):
      for _ in range(self.hops):
        f = propagate(f, graph, self_loops=self.self_loops)
      return self.alpha * f + (1.0 - self.alpha) * y

    return jax.lax.fori_loop(0, self.num_steps, step, y)[begin:end]
