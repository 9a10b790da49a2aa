"""Multi-variate parallel attention from XLA operations, tile by tile of query segments.

Plan. The time term needs [TC, T] numbers, the channel term [TC, C]; both are added inside a tile.
A tile takes a few query segments. Keys within its window go through one product and a softmax.
Keys beyond it have no content, so their weights are an outer product,

  exp(time[s] + chan[e]) = exp(time[s]) exp(chan[e]),

whose sum is a product of two sums: no product of queries and keys, and T + C exponentials a row
instead of T C. What remains dense is the product with the values. Products: 2 TC (W + tile) C D
for the scores and 2 (TC)^2 D / 2 (causal) for the values. Where the weights of all tiles together
are large, the backward pass computes them again, one tile at a time.
"""

import functools
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from h2g.ops import tiles
from h2g.ops.mvpa.call import Operands
from h2g.ops.mvpa.call import relative_channel_index
from h2g.ops.mvpa.call import relative_time_index
from h2g.ops.mvpa.call import Spec

_ROWS = 64  # segments times channels of a tile, at least
_MOST_TILES = 16  # of one program
_SAVED_BYTES = 1 << 24  # of weights that the backward pass may find saved


class Tile(NamedTuple):
  """Query segments [start, stop), which see the content of [first, last) and else of none."""

  start: int
  stop: int
  first: int
  last: int


def cut(length: int, channels: int, spec: Spec) -> list[Tile]:
  """The tiles of a call; the last segment has its own where it sees everything."""
  size = max(-(-length // _MOST_TILES), min(spec.window or 1, -(-_ROWS // channels)))
  whole = length - 1 if spec.last_full else length
  found = []
  for start in range(0, whole, size):
    stop = min(start + size, whole)
    last = stop if spec.causal else min(stop + spec.window, length)
    found.append(Tile(start, stop, max(start - spec.window, 0), last))
  if spec.last_full:
    found.append(Tile(length - 1, length, 0, length))
  return found


def mvpa(operands: Operands, spec: Spec) -> Array:
  """See `h2g.ops.mvpa.mvpa`. Serves every call.

  Lanes are (batch, key head), rows of a segment (channel, head of the group): arrays stay at rank
  five, and every product is a batched matrix product with lanes in front.
  """
  batch, length, channels, heads, width = operands.q.shape
  dtype, groups = tiles.accumulator_dtype(operands.q), operands.k.shape[3]
  per = heads // groups
  q = operands.q.reshape(batch, length, channels, groups, per, width).astype(dtype)

  def asking(bias, *axes):
    """(q + bias) / sqrt(D), axes of [b, t, c, g, r, d] in this order, the first two in front."""
    found = (q + bias.astype(dtype)[None, None, None, :, None]) * width**-0.5
    found = found.astype(operands.q.dtype).transpose(*axes)
    return found.reshape(*found.shape[:2], -1, width)

  def against(rows, table, order):
    """Rows [n, g, x, d] against their own part of a table [n, m, g, d] -> [lanes, t, rows, m]."""
    found = jnp.einsum("ngxd,nmgd->ngxm", rows, table, preferred_element_type=dtype)
    sizes = dict(b=batch, t=length, c=channels, g=groups, r=per)
    found = found.reshape(*(sizes[letter] for letter in order), -1)
    found = found.transpose(*(order.index(letter) for letter in "bgtcr"), 5)
    return found.reshape(batch * groups, length, channels * per, -1)

  by_time = operands.k_time[relative_time_index(length)]
  by_chan = operands.k_chan[relative_channel_index(channels)]
  time = against(asking(operands.bias_time, 1, 3, 0, 2, 4, 5), by_time, "tgbcr")
  chan = against(asking(operands.bias_chan, 2, 3, 0, 1, 4, 5), by_chan, "cgbtr")
  if operands.key_mask is not None:
    mask = jnp.repeat(operands.key_mask, groups, axis=0)[:, None, None]
    chan = jnp.where(mask, chan, tiles.LOWEST)
  content = asking(operands.bias_content, 0, 3, 1, 2, 4, 5)
  content = content.reshape(batch * groups, length, -1, width)
  lanes = lambda x: x.transpose(0, 3, 1, 2, 4).reshape(batch * groups, -1, width)
  k, v = lanes(operands.k), lanes(operands.v)

  plan = cut(length, channels, spec)
  weights = batch * heads * (length * channels) ** 2 * jnp.dtype(dtype).itemsize
  outs = []
  for tile in plan:
    run = functools.partial(_attend, tile=tile, spec=spec, per=per, groups=groups)
    if len(plan) > 1 and weights > _SAVED_BYTES:
      run = jax.checkpoint(run)
    here = slice(tile.start, tile.stop)
    outs.append(run(*(x[:, here] for x in (content, time, chan)), k, v, operands.seed))
  out = jnp.concatenate(outs, axis=1).reshape(batch, groups, length, channels, per, width)
  if operands.key_mask is not None:
    out = jnp.where(operands.key_mask.any(1)[:, None, None, None, None, None], out, 0.0)
  return out.transpose(0, 2, 3, 1, 4, 5).reshape(operands.q.shape)


def _attend(q, time, chan, k, v, seed, *, tile: Tile, spec: Spec, per: int, groups: int) -> Array:
  """Output of one tile, [lanes, t, rows, d], from its rows and all keys [lanes, S C, d]."""
  dtype, channels = time.dtype, chan.shape[-1]
  lanes, num, rows, width = q.shape
  length = k.shape[1] // channels
  near, whole = slice(tile.first, tile.last), slice(tile.start, tile.stop)
  seen = tile.stop if spec.causal else length
  product = functools.partial(jnp.einsum, preferred_element_type=dtype)

  def of(x, ranges, axis, size=1):
    parts = [jax.lax.slice_in_dim(x, r.start * size, r.stop * size, axis=axis) for r in ranges]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=axis)

  by_segments = lambda x: jnp.asarray(x)[None, :, None, :, None]
  flat = q.reshape(lanes, num * rows, width)
  scores = product("lxd,lyd->lxy", flat, of(k, [near], 1, channels))
  scores = scores.reshape(lanes, num, rows, -1, channels)
  counts, attends = (x(length)[whole, near] for x in (spec.content, spec.attends))
  if not counts.all():
    scores = jnp.where(by_segments(counts), scores, 0.0)
  scores = scores + time[..., near, None] + chan[..., None, :]
  if not attends.all():
    scores = jnp.where(by_segments(attends), scores, tiles.LOWEST)
  scores = scores.reshape(lanes, num, rows, -1)
  largest = jax.lax.stop_gradient(scores).max(-1, keepdims=True)
  # Segments beyond: those before the window and, where not causal, those after it.
  beyond = [r for r in (slice(0, tile.first), slice(tile.last, seen)) if r.start < r.stop]
  if beyond:
    far = of(time, beyond, 3)
    tops = [jax.lax.stop_gradient(x).max(-1, keepdims=True) for x in (far, chan)]
    largest = jnp.maximum(largest, tops[0] + tops[1])
  weights = jnp.exp(scores - largest)
  total, parts = weights.sum(-1, keepdims=True), [(weights, [near])]
  if beyond:
    by_lag = jnp.exp(far - tops[0]) * jnp.exp(tops[0] + tops[1] - largest)
    by_distance = jnp.exp(chan - tops[1])
    total = total + by_lag.sum(-1, keepdims=True) * by_distance.sum(-1, keepdims=True)
    parts.append((by_lag[..., None] * by_distance[..., None, :], beyond))
  out = 0.0
  for part, ranges in parts:
    if spec.dropout_rate:
      part = part.reshape(lanes, num, rows, -1, channels)
      segments = np.concatenate([np.arange(r.start, r.stop) for r in ranges])
      keep = _keep(seed, part.shape, tile.start, segments, per, groups, spec.dropout_rate)
      part = jnp.where(keep, part / (1 - spec.dropout_rate), 0.0)
    part = part.astype(v.dtype).reshape(lanes, num * rows, -1)
    out = out + product("lxy,lyd->lxd", part, of(v, ranges, 1, channels))
  return out.reshape(lanes, num, rows, width) / total


def _keep(seed, shape, start: int, segments, per: int, groups: int, rate: float) -> Array:
  """[lanes, t, rows, s, e] bool: which weights stay."""
  lanes, num, rows, _, channels = shape
  along = lambda x, *axes: jnp.asarray(x, jnp.int32).reshape(
    [shape[i] if i in axes else 1 for i in range(5)]
  )
  row, lane = np.arange(rows), np.arange(lanes)
  head = (lane % groups)[:, None] * per + (row % per)[None]
  query = (start + np.arange(num))[:, None] * channels + (row // per)[None]
  key = segments[:, None] * channels + np.arange(channels)[None]
  ids = along(lane // groups, 0), along(head, 0, 2), along(query, 1, 2), along(key, 3, 4)
  return tiles.dropout_keep(seed, *ids, rate=rate)
