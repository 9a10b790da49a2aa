"""Static offsets: one dense product per slice. Dynamic offsets: a grouped product.

Dynamic offsets go to `jax.lax.ragged_dot`, which is a grouped matrix product on accelerators. On
a CPU it multiplies every row by every type's map; there, rows go through in tiles of one type
each (N / TILE + T of them, a static number), which costs what the slices cost.
"""

from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp

from h2g.ops import dispatch

TILE = 128  # rows of a tile: enough for a product at full speed, few lost where a type ends


def typed_linear(x, w, *, offsets, bias):
  """See `api.typed_linear`."""
  wide = _wide(x)
  if isinstance(offsets, tuple):
    parts = []
    # One split, not a slice per type, whose gradient would be as large as x.
    for t, mine in enumerate(jnp.split(x, offsets[1:])[:-1]):
      if len(mine):
        y = jnp.dot(mine, w[t], preferred_element_type=wide)
        parts.append(y if bias is None else y + bias[t].astype(wide)[None, :])
    if offsets[-1] < x.shape[0] or not parts:
      parts.append(jnp.zeros((x.shape[0] - offsets[-1], w.shape[2]), wide))
    return jnp.concatenate(parts).astype(x.dtype)

  row = jnp.arange(x.shape[0], dtype=offsets.dtype)
  real = (row < offsets[-1])[:, None]
  if dispatch.platform() == "cpu" and x.shape[0]:
    y = _by_tiles(*map(jnp.asarray, (x, w, offsets)))
  else:
    # Padding may be NaN, and the product sums over rows in its gradient.
    sizes = jnp.diff(offsets).astype(jnp.int32)
    y = jax.lax.ragged_dot(jnp.where(real, x, 0), w, sizes, preferred_element_type=wide)
  if bias is not None:
    types = jnp.searchsorted(offsets[1:], row, side="right")
    y = y + bias.astype(wide)[jnp.minimum(types, w.shape[0] - 1)]
  return jnp.where(real, y, 0).astype(x.dtype)


def _wide(x: Array):
  """What products accumulate in; float64 serves the tests."""
  return jnp.float64 if x.dtype == jnp.float64 else jnp.float32


class Tiles(NamedTuple):
  """Cuts N rows into tiles of one type each; surplus tiles at the end are empty.

  Attributes:
    type: [P] int32.
    begin: [P] first row that the tile answers for.
    end: [P] one past the last; end - begin is at most the height of a tile.
    start: [P] where it is read and written, at most `begin`, so that it fits into the N rows.
  """

  type: Array
  begin: Array
  end: Array
  start: Array


def _tiles(offsets: Array, num: int) -> tuple[Tiles, int]:
  """(tiles, their height)."""
  height, types = min(TILE, num), offsets.shape[0] - 1
  counts = -(-jnp.diff(offsets) // height)
  first = jnp.cumulative_sum(counts, include_initial=True)
  at = jnp.arange(num // height + types, dtype=offsets.dtype)
  kind = jnp.searchsorted(first[1:], at, side="right").astype(offsets.dtype)
  kind = jnp.minimum(kind, types - 1)
  begin = jnp.minimum(offsets[kind] + (at - first[kind]) * height, offsets[kind + 1])
  end = jnp.minimum(begin + height, offsets[kind + 1])
  return Tiles(kind, begin, end, jnp.minimum(begin, num - height)), height


def _read(x: Array, tile: Tiles, height: int) -> Array:
  return jax.lax.dynamic_slice_in_dim(x, tile.start, height)


def _inside(tile: Tiles, height: int) -> Array:
  """[height, 1] bool: rows the tile answers for."""
  row = tile.start + jnp.arange(height, dtype=tile.start.dtype)
  return ((row >= tile.begin) & (row < tile.end))[:, None]


@jax.custom_vjp
def _by_tiles(x: Array, w: Array, offsets: Array) -> Array:
  """[N, G]; zeros past the last type."""
  tiles, height = _tiles(offsets, x.shape[0])

  def step(out, tile):
    y = jnp.dot(_read(x, tile, height), w[tile.type], preferred_element_type=out.dtype)
    y = jnp.where(_inside(tile, height), y, _read(out, tile, height))
    return jax.lax.dynamic_update_slice_in_dim(out, y, tile.start, 0), None

  return jax.lax.scan(step, jnp.zeros((x.shape[0], w.shape[2]), _wide(x)), tiles)[0]


def _by_tiles_fwd(x, w, offsets):
  return _by_tiles(x, w, offsets), (x, w, offsets)


def _by_tiles_bwd(saved, d_out):
  x, w, offsets = saved
  tiles, height = _tiles(offsets, x.shape[0])
  d_out = d_out.astype(x.dtype)
  dx = _by_tiles(d_out, jnp.swapaxes(w, 1, 2), offsets)

  def step(dw, tile):
    inside = _inside(tile, height)
    mine, theirs = (jnp.where(inside, _read(a, tile, height), 0) for a in (x, d_out))
    return dw.at[tile.type].add(jnp.dot(mine.T, theirs, preferred_element_type=dw.dtype)), None

  dw = jax.lax.scan(step, jnp.zeros(w.shape, _wide(x)), tiles)[0]
  return dx.astype(x.dtype), dw.astype(w.dtype), None


_by_tiles.defvjp(_by_tiles_fwd, _by_tiles_bwd)
