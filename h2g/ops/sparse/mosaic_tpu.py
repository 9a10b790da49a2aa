"""Block-sparse attention in Mosaic TPU: the kernels of `h2g.ops.flash_tpu`, given lists.

Blocks are cut into tiles of at most 512 tokens a side; a tile of a listed block that the mask also
attends to in full runs without a mask, others with it, and what is not listed is never loaded.
Serves float32 and bfloat16, and blocks that are multiples of 128. Not measured.
"""

from jax import Array

from h2g.ops import block_lists
from h2g.ops import flash_tpu
from h2g.ops.sparse.call import Operands
from h2g.ops.sparse.call import Spec

_NAME = "mosaic_tpu"


def block_sparse_attention(operands: Operands, spec: Spec) -> tuple[Array, Array]:
  """See `h2g.ops.sparse.block_sparse_attention`."""
  q, k, v, ids, counts, mask = operands
  check(operands, spec)
  lengths, blocks = (q.shape[1], k.shape[1]), (spec.block_q, spec.block_k)
  sizes = flash_tpu.tile_sizes(mask, *lengths)
  # Powers of two, so that the smaller of two divides what both divide.
  tile = tuple(min(size, block & -block) for size, block in zip(sizes, blocks))
  listed = block_lists.table_of_lists(ids, counts, -(-lengths[1] // spec.block_k))
  shape = tuple(-(-n // size) for n, size in zip(lengths, tile))
  listed = block_lists.refined(listed, *(b // t for b, t in zip(blocks, tile)), shape)
  of_mask = block_lists.table_of_mask(mask, *lengths, *tile)
  table = block_lists.both(listed, of_mask, q.shape[2])
  config = flash_tpu.Config(_NAME, spec.scale, spec.softcap, *tile)
  return flash_tpu.flash(q, k, v, mask, table, config)


def check(operands: Operands, spec: Spec) -> None:
  """Raises NotImplementedError, naming argument and reason, for calls that are not served."""
  flash_tpu.check(_NAME, operands.q, operands.k, operands.v, operands.mask)
  if spec.block_q % flash_tpu.LANES or spec.block_k % flash_tpu.LANES:
    flash_tpu.refuse(
      _NAME,
      "block_size",
      f"multiples of {flash_tpu.LANES} only, not {spec.block_q} by {spec.block_k}",
    )
