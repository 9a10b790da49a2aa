"""Modules with one set of parameters per type, over rows that are sorted by type.

Axes: N rows, T types, F features in, G features out. `offsets` is the static tuple of T + 1 row
offsets (`graph.node_offsets`): rows offsets[t]:offsets[t+1] belong to type t.
"""

from collections.abc import Callable

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from h2g.nn.dropout import dropout
from h2g.nn.dropout import split
from h2g.ops.typed import typed_linear

Offsets = tuple[int, ...]
Init = Callable[..., Array]

# One fan-in per matrix: the leading type axis is a batch of matrices, not part of the fan. Uniform
# rather than truncated normal: the same variance, and a program that compiles in a fraction.
LINEAR_INIT = jax.nn.initializers.variance_scaling(
  1.0, "fan_in", "uniform", in_axis=-2, out_axis=-1, batch_axis=0
)


def type_ids(offsets: Offsets) -> np.ndarray:
  """[N] int32 type of each row, a compile-time constant."""
  return np.repeat(np.arange(len(offsets) - 1, dtype=np.int32), np.diff(offsets))


class TypedLinear(nnx.Module):
  """y[n] = x[n] W[t(n)] + b[t(n)]: one linear map per node type.

  Attributes:
    kernel: [T, F, G].
    bias: [T, G], or None.
  Source: arXiv 2407.10916 (H2GB), the type-wise projections of UnifiedGT.
  """

  def __init__(
    self,
    num_types: int,
    in_dim: int,
    out_dim: int,
    *,
    use_bias: bool = True,
    kernel_init: Init = LINEAR_INIT,
    rngs: nnx.Rngs,
  ):
    self.kernel = nnx.Param(kernel_init(rngs.params(), (num_types, in_dim, out_dim), jnp.float32))
    self.bias = nnx.Param(jnp.zeros((num_types, out_dim))) if use_bias else None

  def __call__(self, x: Array, offsets: Offsets) -> Array:
    bias = None if self.bias is None else self.bias[...]
    return typed_linear(x, self.kernel[...], offsets=offsets, bias=bias)


class TypedLayerNorm(nnx.Module):
  """Layer norm over features with one scale and shift per type; statistics in float32.

  y[n] = (x[n] - mean(x[n])) / sqrt(var(x[n]) + epsilon) * scale[t(n)] + shift[t(n)]
  """

  def __init__(self, num_types: int, dim: int, *, epsilon: float = 1e-5, rngs: nnx.Rngs):
    del rngs  # Nothing random here; taken so that norms and linears are built alike.
    self.scale = nnx.Param(jnp.ones((num_types, dim)))
    self.shift = nnx.Param(jnp.zeros((num_types, dim)))
    self.epsilon = epsilon

  def __call__(self, x: Array, offsets: Offsets, mask: Array | None = None) -> Array:
    del mask
    ids = type_ids(offsets)
    h = x.astype(jnp.float32)
    h = h - h.mean(-1, keepdims=True)
    h = h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + self.epsilon)
    return (h * self.scale[...][ids] + self.shift[...][ids]).astype(x.dtype)


class TypedBatchNorm(nnx.Module):
  """Batch norm with one scale and shift per type, over the rows of the type that are real.

  y[n] = (x[n] - mean_t) / sqrt(var_t + epsilon) * scale[t(n)] + shift[t(n)], per feature
  The statistics are always those of the graph at hand, in evaluation too: of the whole graph that
  is what training saw, and no state is carried. The official code evaluates with running averages.
  Source: arXiv 1502.03167 algorithm 1.
  """

  def __init__(self, num_types: int, dim: int, *, epsilon: float = 1e-5, rngs: nnx.Rngs):
    del rngs
    self.scale = nnx.Param(jnp.ones((num_types, dim)))
    self.shift = nnx.Param(jnp.zeros((num_types, dim)))
    self.epsilon = epsilon

  def __call__(self, x: Array, offsets: Offsets, mask: Array | None = None) -> Array:
    mask = jnp.ones(x.shape[0], bool) if mask is None else mask
    rows, cuts = [], offsets[1:-1]
    for t, (h, real) in enumerate(zip(jnp.split(x, cuts), jnp.split(mask, cuts))):
      h, real = h.astype(jnp.float32), real[:, None]
      count = jnp.maximum(real.sum(dtype=jnp.float32), 1.0)
      h = h - jnp.where(real, h, 0.0).sum(0, keepdims=True) / count
      variance = jnp.where(real, h * h, 0.0).sum(0, keepdims=True) / count
      h = h * jax.lax.rsqrt(variance + self.epsilon)
      rows.append(h * self.scale[...][t][None, :] + self.shift[...][t][None, :])
    return jnp.concatenate(rows).astype(x.dtype)


class TypedFFN(nnx.Module):
  """Type-specific feed-forward: dropout(act(x W1_t + b1_t)) W2_t + b2_t, then dropout.

  Args of the constructor: `num_types` (1 makes it the single shared FFN), `dim`, `expansion`
  (hidden width over dim; H2GB uses 2), `activation`, `dropout_rate`.
  Source: arXiv 2407.10916, type-specific FFN.
  """

  def __init__(
    self,
    num_types: int,
    dim: int,
    *,
    expansion: int = 2,
    activation: Callable[[Array], Array] = jax.nn.gelu,
    dropout_rate: float = 0.0,
    rngs: nnx.Rngs,
  ):
    self.up = TypedLinear(num_types, dim, expansion * dim, rngs=rngs)
    self.down = TypedLinear(num_types, expansion * dim, dim, rngs=rngs)
    self.activation = activation
    self.dropout_rate = dropout_rate

  def __call__(self, x: Array, offsets: Offsets, *, key: Array | None = None) -> Array:
    if self.up.kernel.shape[0] == 1:
      offsets = (0, x.shape[0])
    inner, outer = split(key, 2)
    h = dropout(self.activation(self.up(x, offsets)), self.dropout_rate, inner)
    return dropout(self.down(h, offsets), self.dropout_rate, outer)
