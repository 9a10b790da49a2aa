"""Attention in Mosaic GPU for Hopper: the kernels of `h2g.ops.flash_gpu`, over tiles of the mask.

Serves bfloat16 and float16, widths up to 128, grouped heads, any mask of the algebra that reads
arrays by position only, bias with gradient, soft cap, sinks, hooks without array arguments, and the
log-sum-exp. Not measured.
"""

from collections.abc import Callable
import dataclasses

from jax import Array

from h2g.ops import block_lists
from h2g.ops import flash_gpu
from h2g.ops.attention.call import AttentionOut
from h2g.ops.attention.call import Indices
from h2g.ops.attention.call import Operands
from h2g.ops.attention.call import Spec

_NAME = "mosaic_gpu"


def attention(operands: Operands, spec: Spec) -> AttentionOut:
  """See `h2g.ops.attention`."""
  check(operands, spec)
  num_queries, num_keys = operands.q.shape[1], operands.k.shape[1]
  tile_q, tile_k = block_lists.tile_for(operands.mask, 128, flash_gpu.ROWS)
  tile_q = flash_gpu.ROWS if num_queries <= flash_gpu.ROWS else tile_q
  tile_k = flash_gpu.ROWS if num_keys <= flash_gpu.ROWS else tile_k
  table = block_lists.table_of_mask(operands.mask, num_queries, num_keys, tile_q, tile_k)
  hook = None if spec.logits_fn is None else _Hook(spec.logits_fn)
  config = flash_gpu.Config(_NAME, spec.scale, spec.softcap, hook, tile_q, tile_k)
  call = flash_gpu.Call(
    operands.q,
    operands.k,
    operands.v,
    operands.bias,
    operands.sinks,
    operands.mask,
    operands.origin,
    block_lists.from_table(table),
    block_lists.transposed(table),
    table,
  )
  out, lse = flash_gpu.flash(call, config)
  return AttentionOut(out, lse if spec.lse else None)


def check(operands: Operands, spec: Spec) -> None:
  """Raises NotImplementedError, naming argument and reason, for calls that are not served."""
  flash_gpu.check(_NAME, operands.q, operands.v)
  refuse = flash_gpu.refuse
  if spec.column_mass or spec.entropy or spec.top_keys:
    name = (
      "return_column_mass" if spec.column_mass else "return_entropy" if spec.entropy else "top_keys"
    )
    refuse(_NAME, name, "the weights are never seen outside the kernel")
  if spec.dropout_rate:
    refuse(_NAME, "dropout_rate", "the kernel drops nothing")
  if operands.logits_args:
    refuse(_NAME, "logits_args", "a hook in the kernel reads no arrays")


@dataclasses.dataclass(frozen=True)
class _Hook:
  """`logits_fn` as kernels call it; equal for equal functions, so that nothing compiles twice."""

  function: Callable[..., Array]

  def __call__(self, logits, batch, head, query, key):
    return self.function(logits, Indices(batch, head, query, key))
