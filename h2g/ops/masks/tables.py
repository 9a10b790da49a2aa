"""Masks that are tables over blocks, and how a table is read at another block size."""

import jax.numpy as jnp
import numpy as np

from h2g.ops.masks.base import Blocks
from h2g.ops.masks.base import Corner
from h2g.ops.masks.base import EMPTY
from h2g.ops.masks.base import FULL
from h2g.ops.masks.base import is_static
from h2g.ops.masks.base import Mask
from h2g.ops.masks.base import three_valued
from h2g.ops.masks.base import tile_of
from h2g.ops.masks.base import unknown


def counts(array, blocks: Blocks):
  """Number of true entries of [.., T, S] in each pair of blocks, from corners of a running sum."""
  xp = np if is_static(array) else jnp
  total = xp.pad(
    xp.cumsum(xp.cumsum(array.astype(np.int32), 2), 3), ((0, 0), (0, 0), (1, 0), (1, 0))
  )
  rows = total[:, :, blocks.q_hi + 1] - total[:, :, blocks.q_lo]
  return rows[..., blocks.k_hi + 1] - rows[..., blocks.k_lo]


def _pooled(table, block_q: int, block_k: int, blocks: Blocks):
  """A table read at another block size: what all touched blocks share."""
  touched = Blocks(
    blocks.q_lo // block_q,
    np.minimum(blocks.q_hi // block_q, table.shape[2] - 1),
    blocks.k_lo // block_k,
    np.minimum(blocks.k_hi // block_k, table.shape[3] - 1),
  )
  xp = np if is_static(table) else jnp
  table = xp.asarray(table)
  area = (
    (touched.q_hi - touched.q_lo + 1)[:, None] * (touched.k_hi - touched.k_lo + 1)[None, :]
  ).astype(np.int32)
  full, empty = counts(table == FULL, touched), counts(table == EMPTY, touched)
  return three_valued(full == area[None, None], empty == area[None, None])


class BlockTable(Mask):
  """table[batch, head, query // block_q, key // block_k]."""

  FIELDS = ("table", "block_q", "block_k")

  def evaluate(self, tile):
    table = jnp.asarray(self.table)
    blocks = (1, 1, self.block_q, self.block_k)
    if tile.corner is not None and tile.corner.aligned:
      starts, sizes, _ = tile.corner
      if not any(n % b for n, b in zip(sizes, blocks)):
        coarse = Corner(
          tuple(start // b for start, b in zip(starts, blocks)),
          tuple(n // b for n, b in zip(sizes, blocks)),
          True,
        )
        return jnp.repeat(jnp.repeat(tile_of(table, coarse), self.block_q, 2), self.block_k, 3)
    ids = (tile.batch, tile.head, tile.query // self.block_q, tile.key // self.block_k)
    return table[
      tuple(
        jnp.zeros_like(i) if size == 1 and axis < 2 else i
        for axis, (size, i) in enumerate(zip(table.shape, ids))
      )
    ]

  def classify(self, blocks):
    if blocks.static and not is_static(self.table):
      return unknown(blocks)
    xp = np if is_static(self.table) else jnp
    table = xp.where(xp.asarray(self.table), np.int8(FULL), np.int8(EMPTY))
    return _pooled(table, self.block_q, self.block_k, blocks)

  def gathers(self):
    return True

  def axes(self):
    return [("b", "h", None, None)]

  def check(self, batch, heads, num_queries, num_keys):
    wanted = (batch, heads, -(-num_queries // self.block_q), -(-num_keys // self.block_k))
    shape = tuple(self.table.shape)
    if shape[0] not in (1, batch) or shape[1] not in (1, heads) or shape[2:] != wanted[2:]:
      raise ValueError(
        f"block table is {shape}, expected [{batch}|1, {heads}|1, {wanted[2]}, {wanted[3]}] for "
        f"{num_queries} queries by {num_keys} keys in blocks of {self.block_q} by {self.block_k}"
      )


class Tabulated(Mask):
  """Another mask, with a three-valued table [B|1, H|1, .., ..] that says what its blocks hold."""

  FIELDS = ("mask", "table", "block_q", "block_k")

  def evaluate(self, tile):
    return self.mask.evaluate(tile)

  def classify(self, blocks):
    if blocks.static and not is_static(self.table):
      return self.mask.classify(blocks)
    return _pooled(self.table, self.block_q, self.block_k, blocks)

  def axes(self):
    return [*self.mask.axes(), ("b", "h", None, None)]

  def shifted(self, batch, head):
    return Tabulated(self.mask.shifted(batch, head), self.table, self.block_q, self.block_k)

  def valid_keys(self, num_keys):
    return self.mask.valid_keys(num_keys)

  def valid_queries(self, num_queries):
    return self.mask.valid_queries(num_queries)

  def check(self, batch, heads, num_queries, num_keys):
    self.mask.check(batch, heads, num_queries, num_keys)
    BlockTable(self.table, self.block_q, self.block_k).check(batch, heads, num_queries, num_keys)


def block_table(table, block_q: int, block_k: int) -> Mask:
  """table[query // block_q, key // block_k].

  Args:
    table: bool [B|1, H|1, ceil(T/block_q), ceil(S/block_k)]; NumPy is known while tracing, so its
      empty blocks cost nothing at all; a jax array is read on the device.
    block_q: queries per block.
    block_k: keys per block.
  """
  if not hasattr(table, "dtype") or table.ndim != 4 or table.dtype != np.bool_:
    raise ValueError(
      f"block table must be a bool array [B|1, H|1, query blocks, key blocks]: got {table!r}"
    )
  return BlockTable(table, int(block_q), int(block_k))
