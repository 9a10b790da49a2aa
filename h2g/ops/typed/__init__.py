"""One weight per type over type-sorted rows."""

from jax import Array
import jax.numpy as jnp


def typed_linear(x: Array, w: Array, *, offsets, bias: Array | None = None, implementation=None):
  """y[n] = x[n] w[t(n)] + bias[t(n)] (to be replaced by its owner)."""
  del implementation
  rows = []
  for t in range(w.shape[0]):
    y = x[offsets[t] : offsets[t + 1]] @ w[t]
    rows.append(y if bias is None else y + bias[t][None, :])
  return jnp.concatenate(rows)
