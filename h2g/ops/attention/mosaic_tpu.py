"""Attention in Mosaic TPU: the kernels of `h2g.ops.flash_tpu`, over tiles of the mask.

Serves float32 and bfloat16, widths up to 256, grouped heads, any mask of the algebra but functions
of indices, soft cap, sinks, and the log-sum-exp. Not measured.
"""

from h2g.ops import block_lists
from h2g.ops import flash_tpu
from h2g.ops.attention.call import AttentionOut
from h2g.ops.attention.call import Operands
from h2g.ops.attention.call import Spec

_NAME = "mosaic_tpu"


def attention(operands: Operands, spec: Spec) -> AttentionOut:
  """See `h2g.ops.attention`."""
  check(operands, spec)
  q, k, v, mask = operands.q, operands.k, operands.v, operands.mask
  tile = flash_tpu.tile_sizes(mask, q.shape[1], k.shape[1])
  table = block_lists.table_of_mask(mask, q.shape[1], k.shape[1], *tile)
  config = flash_tpu.Config(_NAME, spec.scale, spec.softcap, *tile)
  out, lse = flash_tpu.flash(q, k, v, mask, table, config)
  if operands.sinks is not None:
    out, lse = flash_tpu.with_sinks(out, lse, operands.sinks)
  return AttentionOut(out, lse if spec.lse else None)


def check(operands: Operands, spec: Spec) -> None:
  """Raises NotImplementedError, naming argument and reason, for calls that are not served."""
  flash_tpu.check(_NAME, operands.q, operands.k, operands.v, operands.mask)
  refuse = flash_tpu.refuse
  statistics = dict(
    return_column_mass=spec.column_mass, return_entropy=spec.entropy, top_keys=spec.top_keys
  )
  for name, wanted in statistics.items():
    if wanted:
      refuse(_NAME, name, "the weights are never seen outside the kernel")
  if operands.bias is not None:
    refuse(_NAME, "bias", "the kernel adds nothing to the logits")
  if spec.logits_fn is not None:
    refuse(_NAME, "logits_fn", "the kernel calls no hook")
  if spec.dropout_rate:
    refuse(_NAME, "dropout_rate", "the kernel drops nothing")
