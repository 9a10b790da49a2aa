"""Static offsets: one dense product per slice. Dynamic offsets: `jax.lax.ragged_dot`.

On a CPU `ragged_dot` is an order of magnitude slower than the slices; on accelerators it is a
grouped matrix product.
"""

import itertools

import jax
import jax.numpy as jnp


def typed_linear(x, w, *, offsets, bias):
  """See `api.typed_linear`."""
  if isinstance(offsets, tuple):
    parts = []
    for t, (begin, end) in enumerate(itertools.pairwise(offsets)):
      if end > begin:
        y = jnp.dot(x[begin:end], w[t], preferred_element_type=jnp.float32)
        parts.append(y if bias is None else y + bias[t].astype(jnp.float32)[None, :])
    if offsets[-1] < x.shape[0] or not parts:
      parts.append(jnp.zeros((x.shape[0] - offsets[-1], w.shape[2]), jnp.float32))
    return jnp.concatenate(parts).astype(x.dtype)

  row = jnp.arange(x.shape[0], dtype=offsets.dtype)
  real = (row < offsets[-1])[:, None]
  sizes = jnp.diff(offsets).astype(jnp.int32)
  clean = jnp.where(
    real, x, 0
  )  # padding may be NaN, and the product sums over rows in its gradient
  y = jax.lax.ragged_dot(clean, w, sizes, preferred_element_type=jnp.float32)
  if bias is not None:
    types = jnp.searchsorted(offsets[1:], row, side="right")
    y = y + bias.astype(jnp.float32)[jnp.minimum(types, w.shape[0] - 1)]
  return jnp.where(real, y, 0).astype(x.dtype)
