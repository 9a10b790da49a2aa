"""Mask algebra: which query may attend to which key, as a small expression tree.

A mask is a predicate over four index arrays, `mask(query, key, head, batch)`, and `True` attends.
Masks combine with `&`, `|` and `~`, and are immutable pytrees: arrays inside are leaves,
everything else is static and hashable. Nothing of size [T, S] exists until somebody evaluates a
tile. Beside the predicate each mask can *bound the work*: for a block of queries against a block
of keys it says EMPTY, PARTIAL or FULL, so that an implementation skips the first kind, and
evaluates the predicate only for the second.

  mask = masks.causal() & masks.segments(document_ids) | masks.prefix(16)
  mask.dense(num_queries, num_keys)                    # bool [B|1, H|1, T, S], for looking at
  mask.block_table(num_queries, num_keys, 128, 128)    # int8 [B|1, H|1, T/128, S/128]

A new mask is a function of indices:

  def dilated(step):
    return masks.function(lambda query, key, head, batch: (query - key) % step == 0)

Axes: B batch, H heads, T queries, S keys. Broadcast axes have length 1 (written B|1, H|1).
"""

from h2g.ops.masks.base import And
from h2g.ops.masks.base import as_mask
from h2g.ops.masks.base import Blocks
from h2g.ops.masks.base import blocks_of
from h2g.ops.masks.base import Corner
from h2g.ops.masks.base import EMPTY
from h2g.ops.masks.base import FULL
from h2g.ops.masks.base import Mask
from h2g.ops.masks.base import Not
from h2g.ops.masks.base import Or
from h2g.ops.masks.base import PARTIAL
from h2g.ops.masks.base import slice_at
from h2g.ops.masks.base import Tile
from h2g.ops.masks.base import tile_of
from h2g.ops.masks.kinds import Band
from h2g.ops.masks.kinds import causal
from h2g.ops.masks.kinds import Dense
from h2g.ops.masks.kinds import dense
from h2g.ops.masks.kinds import Full
from h2g.ops.masks.kinds import full
from h2g.ops.masks.kinds import Function
from h2g.ops.masks.kinds import function
from h2g.ops.masks.kinds import key_padding
from h2g.ops.masks.kinds import prefix
from h2g.ops.masks.kinds import query_padding
from h2g.ops.masks.kinds import Range
from h2g.ops.masks.kinds import Segments
from h2g.ops.masks.kinds import segments
from h2g.ops.masks.kinds import window
from h2g.ops.masks.tables import block_table
from h2g.ops.masks.tables import BlockTable
from h2g.ops.masks.tables import Tabulated

__all__ = [
  "EMPTY",
  "FULL",
  "PARTIAL",
  "And",
  "Band",
  "BlockTable",
  "Blocks",
  "Corner",
  "Dense",
  "Full",
  "Function",
  "Mask",
  "Not",
  "Or",
  "Range",
  "Segments",
  "Tabulated",
  "Tile",
  "as_mask",
  "block_table",
  "blocks_of",
  "causal",
  "dense",
  "full",
  "function",
  "key_padding",
  "prefix",
  "query_padding",
  "segments",
  "slice_at",
  "tile_of",
  "window",
]
