"""Heads on a class token, and how the losses of several are weighed."""

from typing import NamedTuple

from flax import nnx
from jax import Array
import jax.numpy as jnp


class Classified(NamedTuple):
  """feature: [B, D] class token, normalised; logits: [B, classes]."""

  feature: Array
  logits: Array


class UncertaintyWeighting(nnx.Module):
  """L = 1/2 sum_k (exp(-w_k) L_k + w_k), w learned, at first 0.

  Source: arXiv 2004.01888 eq. 6 (FairMOT), as arXiv 2205.02151 cites it.
  """

  def __init__(self, num: int):
    self.w = nnx.Param(jnp.zeros(num))

  def __call__(self, losses: Array) -> Array:
    """[] from losses [num]."""
    return 0.5 * jnp.sum(jnp.exp(-self.w[...]) * losses + self.w[...])


class ClassTokenHead(nnx.Module):
  """Last norm and classifier; with `bnneck` the classifier sees a batch-normalised token.

  Source: arXiv 1903.07071 sec. 3.5 (BNNeck: no shift, no bias of the classifier).
  """

  def __init__(self, dim: int, num_classes: int, *, bnneck: bool, rngs: nnx.Rngs):
    init = nnx.initializers.normal(0.02)
    self.neck = nnx.BatchNorm(dim, use_bias=False, momentum=0.9, rngs=rngs) if bnneck else None
    self.out = nnx.Linear(dim, num_classes, use_bias=not bnneck, kernel_init=init, rngs=rngs)

  def __call__(self, x: Array, *, train: bool) -> Classified:
    """From class tokens [B, D] after the last norm."""
    necked = x if self.neck is None else self.neck(x, use_running_average=not train)
    return Classified(x if train else necked, self.out(necked))
