"""The definition of multi-variate parallel attention: dense, O((T C)^2) memory."""

import jax
from jax import Array
import jax.numpy as jnp

from h2g.ops import tiles
from h2g.ops.mvpa.call import Operands
from h2g.ops.mvpa.call import relative_channel_index
from h2g.ops.mvpa.call import relative_time_index
from h2g.ops.mvpa.call import Spec


def mvpa(operands: Operands, spec: Spec) -> Array:
  """As the equations of `h2g.ops.mvpa.mvpa` read, in float32 (float64 for float64).

  Letters: b batch, t c query segment and channel, s e key segment and channel, g key head, r query
  head within its group, d width.
  """
  dtype = tiles.accumulator_dtype(operands.q)
  batch, length, channels, heads, width = operands.q.shape
  floats = [x.astype(dtype) for x in operands[:8]]
  q, k, v, k_time, k_chan, bias_content, bias_time, bias_chan = floats
  q = q.reshape(batch, length, channels, k.shape[3], -1, width)
  asking = lambda bias: q + bias[None, None, None, :, None]

  product = lambda letters, x, y: jnp.einsum(letters, x, y, precision="highest")
  content = product("btcgrd,bsegd->bgrtcse", asking(bias_content), k)
  time = product("btcgrd,tsgd->bgrtcs", asking(bias_time), k_time[relative_time_index(length)])
  chan = product("btcgrd,cegd->bgrtce", asking(bias_chan), k_chan[relative_channel_index(channels)])

  by_segments = lambda x: x[None, None, None, :, None, :, None]
  content = jnp.where(by_segments(spec.content(length)), content, 0.0)
  scores = (content + time[..., None] + chan[..., None, :]) * width**-0.5

  scores = jnp.where(by_segments(spec.attends(length)), scores, -jnp.inf)
  weights = lambda scores: jax.nn.softmax(scores.reshape(*scores.shape[:5], -1), axis=-1)
  if operands.key_mask is None:
    weights = weights(scores)
  else:  # a query sees every channel of its own segment, so one key is enough for all
    mask, any_key = operands.key_mask, operands.key_mask.any(1)
    seen = (mask | ~any_key[:, None])[:, None, None, None, None, None]
    scores = jnp.where(seen, scores, -jnp.inf)
    weights = jnp.where(any_key.reshape(-1, 1, 1, 1, 1, 1), weights(scores), 0.0)
  if spec.dropout_rate:
    shape = (batch, heads, length * channels, length * channels)
    ids = (jnp.arange(n, dtype=jnp.int32).reshape([-1 if i == at else 1 for i in range(4)])
           for at, n in enumerate(shape))  # fmt: skip
    keep = tiles.dropout_keep(operands.seed, *ids, rate=spec.dropout_rate)
    weights = jnp.where(keep.reshape(weights.shape), weights / (1 - spec.dropout_rate), 0.0)
  weights = weights.reshape(*weights.shape[:5], length, channels)
  return product("bgrtcse,bsegd->btcgrd", weights, v).reshape(operands.q.shape)
