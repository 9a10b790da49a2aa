"""Cross-attention in which a query reads one feature per head.

Axes: B images, Q queries, D width, H heads, N = height * width pixels.
Source: arXiv 2402.19422 and its code; where they differ, the code, with a flag.
"""

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.errors import InputError
from h2g.nn.image import depthwise
from h2g.nn.image import make_norm
from h2g.nn.image import Reading
from h2g.ops.prototype import prototype_attention
from h2g.ops.prototype import PrototypeOut
from h2g.ops.prototype import random_prototypes


def unit(x: Array, axis: int = -1) -> Array:
  """x / |x| along an axis; a gradient without NaN at zero.

  The squares of the last axis are summed by a product with ones. A plain sum would be fused with
  all that makes x on CPUs: the features' nine shifted copies were written out one by one, and the
  whole module took twice the time.
  """
  if axis == -1:
    squares = jnp.matmul(x * x, jnp.ones((x.shape[-1], 1), x.dtype), precision="highest")
  else:
    squares = jnp.sum(x * x, axis=axis, keepdims=True)
  return x * jax.lax.rsqrt(squares + 1e-12)


class PrototypeCrossAttention(nnx.Module):
  """Each query takes one feature per head, its prototype p, and meets it in element-wise products.

  F = Linear(depthwise 3x3(BN(memory + positions)))       q = Linear(LN(x + query positions))
  p = concat_h F_h[argmax_n <F_h[n], q_h>],  F and q of unit norm over all D, n inside the mask
  out = x + Linear(alpha * unit(Linear(p * q)) + p)
  """

  def __init__(
    self,
    dim: int,
    num_heads: int,
    *,
    choice: str = "similar",
    normalise: str = "queries",
    when_empty: str = "query",
    norm: str = "batch",
    rngs: nnx.Rngs,
  ):
    """Args:
    choice: "similar", or "random": any allowed pixel.
    normalise: unit norm over the Q "queries" of each channel (code), or over "channels" (paper).
    when_empty: of `prototype_attention`; "batch" is the code's.
    """
    for name, value, known in (
      ("choice", choice, ("similar", "random")),
      ("normalise", normalise, ("queries", "channels")),
    ):
      if value not in known:
        raise InputError(f"{name}={value!r} is unknown: choose from {', '.join(known)}")
    linear = lambda: nnx.Linear(dim, dim, rngs=rngs)
    self.norm = make_norm(dim, norm, rngs=rngs)
    init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=(0, 1), out_axis=2)
    self.local = nnx.Param(init(rngs.params(), (3, 3, dim)))
    self.local_bias = nnx.Param(jnp.zeros(dim))
    self.features, self.query, self.project, self.out = linear(), linear(), linear(), linear()
    self.query_norm = nnx.LayerNorm(dim, epsilon=1e-5, rngs=rngs)
    self.alpha = nnx.Param(jnp.ones(dim))
    self.num_heads, self.choice, self.when_empty = num_heads, choice, when_empty
    self.axis = 1 if normalise == "queries" else -1
    self.implementation = None  # of the operation

  def choose(self, x: Array, reading: Reading, key: Array | None) -> tuple[Array, PrototypeOut]:
    """(q [B, Q, D], prototypes by head)."""
    memory = self.norm(reading.memory + reading.positions[None])
    local = depthwise(memory, self.local[...]) + self.local_bias[...].reshape(1, 1, 1, -1)
    f = unit(self.features(local.reshape(len(x), -1, x.shape[-1])))
    q = unit(self.query(self.query_norm(x + reading.query_positions[None])))
    heads = lambda y: y.reshape(*y.shape[:2], self.num_heads, -1)
    options = dict(mask=reading.mask, when_empty=self.when_empty)
    if self.choice == "random":
      key = jax.random.key(0) if key is None else key  # evaluation draws too, always the same
      return q, random_prototypes(key, heads(f), x.shape[1], **options)
    return q, prototype_attention(heads(q), heads(f), implementation=self.implementation, **options)

  def __call__(self, x: Array, reading: Reading, *, key: Array | None = None) -> Array:
    q, found = self.choose(x, reading, key)
    p = found.prototypes.reshape(q.shape)
    met = self.alpha[...].reshape(1, 1, -1) * unit(self.project(p * q), self.axis)
    return x + self.out(met + p)
