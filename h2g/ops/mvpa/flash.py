"""Multi-variate parallel attention as two calls of `h2g.ops.attention`, whose kernels serve it.

Plan. Lag and distance enter the product itself: with A_t [TC, T] and A_c [TC, C] the two terms,

  content + time + chan = <[q + u, A_t, A_c], [k, onehot(s), onehot(e)]>

is a plain inner product of width D + T + C: no bias of size (TC)^2 is stored and none is gathered.
Where content counts, one call with that product; beyond the window, one with [A_t, A_c] alone;
then both are merged by their log-sum-exps. Cost: products of scores grow by (D + T + C) / D, tiles
beyond the window compute T + C wide ones. The GPU kernel takes widths up to 128; otherwise, and on
a CPU, attention's own XLA form serves the two calls.
"""

from jax import Array
import jax.numpy as jnp
import numpy as np

from h2g.ops import masks
from h2g.ops import tiles
from h2g.ops.attention import attention
from h2g.ops.mvpa.call import Operands
from h2g.ops.mvpa.call import relative_channel_index
from h2g.ops.mvpa.call import relative_time_index
from h2g.ops.mvpa.call import Spec


def mvpa(operands: Operands, spec: Spec) -> Array:
  """See `h2g.ops.mvpa.mvpa`; letters as in the reference."""
  if spec.dropout_rate:
    raise NotImplementedError("attention draws its own dropout from a key: use xla")
  batch, length, channels, _, width = operands.q.shape
  dtype, num = tiles.accumulator_dtype(operands.q), length * channels
  groups = operands.k.shape[3]
  q = operands.q.reshape(batch, length, channels, groups, -1, width)
  asking = lambda bias: q + bias[None, None, None, :, None]
  product = lambda letters, x, y: jnp.einsum(letters, x, y, preferred_element_type=dtype)
  time = operands.k_time[relative_time_index(length)]
  chan = operands.k_chan[relative_channel_index(channels)]
  time = product("btcgrd,tsgd->btcgrs", asking(operands.bias_time), time)
  chan = product("btcgrd,cegd->btcgre", asking(operands.bias_chan), chan)
  rows = lambda x: x.astype(operands.q.dtype).reshape(batch, num, -1, x.shape[-1])
  segment, channel = jnp.arange(num) // channels, jnp.arange(num) % channels
  onehot = jnp.concatenate(
    [jnp.eye(length, dtype=q.dtype)[segment], jnp.eye(channels, dtype=q.dtype)[channel]], axis=-1
  )
  onehot = jnp.broadcast_to(onehot[None, :, None], (batch, num, groups, length + channels))
  content, k, v = rows(asking(operands.bias_content)), rows(operands.k), rows(operands.v)
  places = jnp.concatenate([rows(time), rows(chan)], axis=-1)

  def call(q, k, mask):
    if operands.key_mask is not None:
      mask = mask & masks.dense(jnp.tile(operands.key_mask, (1, length))[:, None, None])
    found = attention(q, k, v, mask=mask, scale=width**-0.5, return_lse=True)
    lse = jnp.swapaxes(found.lse, 1, 2)[..., None]
    return found.out.astype(dtype), jnp.maximum(lse, tiles.LOWEST)  # where no key: zeros, finite

  near, far = _masks(length, channels, spec)
  joined = lambda *parts: jnp.concatenate(parts, axis=-1)
  out, lse = call(joined(content, places), joined(k, onehot), near)
  if far is not None:
    far_out, far_lse = call(places, onehot, far)
    both = jnp.logaddexp(lse, far_lse)
    out = out * jnp.exp(lse - both) + far_out * jnp.exp(far_lse - both)
  return out.reshape(operands.q.shape)


def _masks(length: int, channels: int, spec: Spec):
  """(where content counts, where only lag and distance do, or None if nowhere)."""
  seen = _lag_between(0, length, channels) if spec.causal else masks.full()
  if (spec.content(length) == spec.attends(length)).all():
    return seen, None
  content = _lag_between(-spec.window, spec.window, channels)
  if spec.last_full:
    num = length * channels
    content = content | masks.Range(num - channels, num, True)
  return content & seen, ~content & seen


def _lag_between(low: int, high: int, channels: int) -> masks.Mask:
  """low <= query segment - key segment <= high, with a bound by which tiles are left out."""

  def attends(query, key, head, batch):
    lag = query // channels - key // channels
    return (lag >= low) & (lag <= high)

  def bound(blocks):
    ends = [np.asarray(x) // channels for x in (blocks.q_lo, blocks.q_hi, blocks.k_lo, blocks.k_hi)]
    least, most = ends[0][:, None] - ends[3][None], ends[1][:, None] - ends[2][None]
    full, empty = (least >= low) & (most <= high), (most < low) | (least > high)
    return np.where(empty, masks.EMPTY, np.where(full, masks.FULL, masks.PARTIAL))[
      None, None
    ].astype(np.int8)

  return masks.function(attends, bound=bound)
