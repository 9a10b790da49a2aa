"""A call's operands in whole tiles."""

import functools
from typing import NamedTuple

from jax import Array
import jax.numpy as jnp

from h2g.ops import block_lists
from h2g.ops.flash_gpu.call import Call
from h2g.ops.flash_gpu.call import Config
from h2g.ops.flash_gpu.call import WIDTHS
from h2g.ops.flash_gpu.logits import leaf_of
from h2g.ops.flash_gpu.logits import Logits


class Padded(NamedTuple):
  """What all kernels of a call read.

  Attributes:
    q, k, v: lengths in whole tiles, widths 64 or 128; zeros behind what was given.
    logits: function of products, with arrays (refs inside a kernel) in its leaves.
    sinks: [H] float32 or None.
  """

  q: Array
  k: Array
  v: Array
  logits: Logits
  sinks: Array | None


def whole_tiles(n: int, tile: int) -> int:
  return -(-n // tile) * tile


def _width(n: int) -> int:
  return next(w for w in WIDTHS if n <= w)


def pad_rows(x: Array, length: int) -> Array:
  """[B, T, H, D] with zeros up to `length` and up to a width that TMA tiles have."""
  shape = (0, 0), (0, length - x.shape[1]), (0, 0), (0, _width(x.shape[3]) - x.shape[3])
  return jnp.pad(x, shape) if any(after for _, after in shape) else x


def in_whole_tiles(call: Call, config: Config, *, transposed: bool = False) -> Padded:
  """The operands; `transposed` for kernels whose rows are keys."""
  num_queries, num_keys = call.q.shape[1], call.k.shape[1]
  lengths = whole_tiles(num_queries, config.tile_q), whole_tiles(num_keys, config.tile_k)
  program = block_lists.mask_program(call.mask, config.tile_q, config.tile_k, config.name)
  leaf = functools.partial(leaf_of, lengths=lengths, transposed=transposed)
  mask = tuple(leaf(x, block=block) for x, block in zip(program.arrays, program.blocks))
  bias = None if call.bias is None else leaf(call.bias)
  origin = None
  if call.origin is not None and config.hook is not None:
    origin = jnp.asarray(call.origin, jnp.int32)
  ragged = num_keys if num_keys % config.tile_k else None
  return Padded(
    pad_rows(call.q, lengths[0]),
    pad_rows(call.k, lengths[1]),
    pad_rows(call.v, lengths[1]),
    Logits(config, ragged, program.attends, bias, mask, origin),
    None if call.sinks is None else call.sinks.astype(jnp.float32),
  )
