"""Block-sparse attention in Mosaic GPU for Hopper: the kernels of `h2g.ops.flash_gpu`, given lists.

Blocks are cut into tiles of 64 or 128 tokens a side; a tile of a listed block that the mask also
attends to in full runs without a mask, others with it, and what is not listed is never loaded.
Serves bfloat16 and float16 and widths up to 128. Not measured.
"""

from jax import Array

from h2g.ops import block_lists
from h2g.ops import flash_gpu
from h2g.ops.sparse.call import Operands
from h2g.ops.sparse.call import Spec

_NAME = "mosaic_gpu"


def block_sparse_attention(operands: Operands, spec: Spec) -> tuple[Array, Array]:
  """See `h2g.ops.sparse.block_sparse_attention`."""
  q, k, v, ids, counts, mask = operands
  check(operands, spec)
  num_queries, num_keys, heads = q.shape[1], k.shape[1], q.shape[2]
  blocks = spec.block_q, spec.block_k
  tile = tuple(
    128 if block % 128 == 0 and most == 128 else flash_gpu.ROWS
    for block, most in zip(blocks, block_lists.tile_for(mask, 128, flash_gpu.ROWS))
  )
  listed = block_lists.table_of_lists(ids, counts, -(-num_keys // spec.block_k))
  shape = tuple(-(-n // size) for n, size in zip((num_queries, num_keys), tile))
  listed = block_lists.refined(listed, *(b // t for b, t in zip(blocks, tile)), shape)
  of_mask = block_lists.table_of_mask(mask, num_queries, num_keys, *tile)
  table = block_lists.both(listed, of_mask, heads)
  config = flash_gpu.Config(_NAME, spec.scale, spec.softcap, None, *tile)
  lists = block_lists.from_table(table), block_lists.transposed(table)
  return flash_gpu.flash(flash_gpu.Call(q, k, v, None, None, mask, None, *lists), config)


def check(operands: Operands, spec: Spec) -> None:
  """Raises NotImplementedError, naming argument and reason, for calls that are not served."""
  flash_gpu.check(_NAME, operands.q, operands.v)
  if spec.block_q % flash_gpu.ROWS or spec.block_k % flash_gpu.ROWS:
    flash_gpu.refuse(
      _NAME,
      "block_size",
      f"multiples of {flash_gpu.ROWS} only, not {spec.block_q} by {spec.block_k}",
    )
