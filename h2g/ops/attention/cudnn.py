"""Attention by cuDNN's fused kernels, through `jax.nn.dot_product_attention`, where that is exact.

`check` says which calls those are. Known wrong or failing calls below it are refused, by argument:
a window open to the right attends to the future without an error (jax-ml/jax 39576), a mask
without a bias fails (28974), the gradient of a bias is missing for more than one batch entry
(30593, 27184). The log-sum-exp comes back rounded to the dtype of the output, so statistics are
refused too.
"""

import jax
import jax.numpy as jnp

from h2g.ops import dispatch
from h2g.ops import masks
from h2g.ops.attention.call import AttentionOut
from h2g.ops.attention.call import Operands
from h2g.ops.attention.call import Spec

_FINITE = {jnp.dtype(jnp.bfloat16): -1e30, jnp.dtype(jnp.float16): -6e4}  # stands for -inf


def attention(operands: Operands, spec: Spec) -> AttentionOut:
  """See `h2g.ops.attention`."""
  check(operands, spec)
  if dispatch.platform() != "gpu":
    raise NotImplementedError(f"cudnn serves gpu, and this platform is {dispatch.platform()}")
  q, k, v, bias = operands[:4]
  left, right = band(operands.mask)
  alive = None
  if bias is not None:
    # A row of bias that is -inf throughout would come out as NaN; it must come out as zeros.
    alive = (bias > -jnp.inf).any(-1)
    bias = jnp.maximum(bias, jnp.asarray(_FINITE[bias.dtype], bias.dtype))
  try:
    out = jax.nn.dot_product_attention(
      q,
      k,
      v,
      bias=bias,
      scale=spec.scale,
      is_causal=right == 0,
      local_window_size=None if left is None else (left, 0),
      implementation="cudnn",
    )
  except RuntimeError as error:  # no cuDNN on this host, as when lowering for a GPU elsewhere
    raise NotImplementedError(f"cudnn cannot serve this host: {error}") from error
  if alive is not None:
    out = jnp.where(jnp.swapaxes(alive, 1, 2)[..., None], out, jnp.zeros_like(out))
  return AttentionOut(out)


def band(mask: masks.Mask | None) -> tuple[int | None, int | None]:
  """(left, right) of a mask that is a band around the diagonal, None for an open side.

  Raises:
    NotImplementedError: the mask is anything else.
  """
  if mask is None or isinstance(mask, masks.Full):
    return None, None
  if type(mask) is masks.And:
    sides = zip(band(mask.left), band(mask.right))
    return tuple(min((x for x in pair if x is not None), default=None) for pair in sides)
  if not isinstance(mask, masks.Band):
    raise _refusal("mask", f"only causal masks and causal windows, not {type(mask).__name__}")
  if not isinstance(mask.offset, int) or mask.offset:
    raise _refusal("mask", f"an offset of queries against keys ({mask.offset})")
  return mask.left, mask.right


def check(operands: Operands, spec: Spec) -> None:
  """Raises NotImplementedError, naming argument and reason, where cuDNN would not be exact.

  Looks at shapes, dtypes and static values only, so it runs without a GPU.
  """
  q, _, v, bias = operands[:4]
  batch, num_queries, heads, width = q.shape
  num_keys = v.shape[1]
  if q.dtype not in _FINITE:
    raise _refusal("q", f"bfloat16 or float16 only, not {q.dtype}")
  if width % 8 or width > 128:
    raise _refusal("q", f"head widths that are multiples of 8 up to 128, not {width}")
  if v.shape[3] != width:
    raise _refusal("v", f"a value width equal to the head width {width}, not {v.shape[3]}")
  if not (batch and num_queries and num_keys):
    raise _refusal("q", f"no empty axes, in {q.shape} against {num_keys} keys")
  if spec.softcap is not None:
    raise _refusal("softcap", "no soft cap")
  if spec.logits_fn is not None:
    raise _refusal("logits_fn", "no function of the logits")
  if operands.sinks is not None:
    raise _refusal("sinks", "no sinks")
  if spec.dropout_rate:
    raise _refusal("dropout_rate", "its dropout is not a function of the key and the position")
  if spec.lse:
    raise _refusal("return_lse", f"the log-sum-exp comes rounded to {q.dtype}, without gradient")
  if spec.column_mass or spec.entropy or spec.top_keys:
    name = (
      "return_column_mass" if spec.column_mass else "return_entropy" if spec.entropy else "top_keys"
    )
    raise _refusal(name, "the weights are never seen outside the kernel")
  left, right = band(operands.mask)
  if right not in (None, 0):
    raise _refusal("mask", f"a window of {right} keys to the right")
  if left is not None and right is None:
    raise _refusal(
      "mask", "a left window without the causal mask attends to the future (jax 39576)"
    )
  if right == 0 and num_queries != num_keys:
    raise _refusal("mask", f"a causal mask over {num_queries} queries by {num_keys} keys")
  if bias is None:
    return
  if batch > 1 or bias.shape != (1, heads, num_queries, num_keys):
    raise _refusal(
      "bias",
      f"has a gradient for shape (1, H, T, S) at batch 1 only, not {bias.shape} at batch {batch}",
    )
  if bias.dtype != q.dtype:
    raise _refusal("bias", f"would be rounded from {bias.dtype} to {q.dtype}")
  if num_queries % 2 or num_keys % 2:
    raise _refusal("bias", f"even lengths only, not {num_queries} by {num_keys}")
  if left is not None:
    raise _refusal("bias", "together with a window")


def _refusal(argument: str, reason: str) -> NotImplementedError:
  return NotImplementedError(f"cudnn cannot serve {argument}: {reason}")
