"""The public signature of multi-variate parallel attention: checks, choice of implementation."""

from collections.abc import Callable
from collections.abc import Mapping

import jax
from jax import Array
import jax.numpy as jnp

from h2g.ops import dispatch
from h2g.ops.mvpa import flash
from h2g.ops.mvpa import reference
from h2g.ops.mvpa import xla
from h2g.ops.mvpa.call import Operands
from h2g.ops.mvpa.call import Spec

IMPLEMENTATIONS: Mapping[str, Callable[[Operands, Spec], Array]] = dict(
  xla=xla.mvpa, reference=reference.mvpa, attention=flash.mvpa
)
ORDER = dict.fromkeys(("cpu", "gpu", "tpu"), ("xla",))


def mvpa(
  q: Array,
  k: Array,
  v: Array,
  k_time: Array,
  k_chan: Array,
  bias_content: Array,
  bias_time: Array,
  bias_chan: Array,
  *,
  window: int = 10,
  causal: bool = True,
  last_full: bool = True,
  key_mask: Array | None = None,
  dropout_rate: float = 0.0,
  dropout_key: Array | None = None,
  implementation: str | None = None,
) -> Array:
  """Attention over segments and channels whose scores are content + time + channel.

    content(tc, se) = <q[t,c,h] + u[g], k[s,e,g]>  if |t - s| <= window, or t = T-1 and last_full
                      0                            otherwise
    time(tc, s)     = <q[t,c,h] + v[g], k_time[T - 1 - |t - s|, g]>
    chan(tc, e)     = <q[t,c,h] + z[g], k_chan[C - 1 - |c - e|, g]>
    o[t,c,h] = sum_{s,e} softmax_{s,e}((content + time + chan) / sqrt(D)) v[s,e,g],
    g = h // (H // K),

  over s <= t where causal; all channels of a segment see one another. Beyond the window a key
  still takes part, by its lag and distance alone.

  Axes: B batch, T segments, C channels, H heads, K key heads (K divides H), D head width.

  Args:
    q: [B, T, C, H, D] float.
    k, v: [B, T, C, K, D] like q.
    k_time: [T, K, D] like q; the row T - 1 - lag.
    k_chan: [C, K, D] like q; the row C - 1 - distance.
    bias_content, bias_time, bias_chan: u, v, z, [K, D] like q.
    window: segments whose content a query sees, besides its own; >= 0.
    causal: keys of later segments are masked. False: all segments, lags by their size.
    last_full: queries of the last segment see the content of all.
    key_mask: [B, C] bool, True attends: False for channels that only pad the batch. What stands in
      their keys and values has no effect, NaN included. A query without any key gives zeros.
    dropout_rate: share of the weights that is dropped; the others are divided by 1 - rate.
    dropout_key: a jax.random key, required when dropout_rate > 0; which weights drop depends on
      it and on their place alone, the same for every implementation.
    implementation: "xla", "reference", "attention", or None for the best.
  Returns:
    [B, T, C, H, D] in q's dtype; accumulated in float32 (float64 for float64).
  Raises:
    ValueError: shapes or arguments disagree; the message shows both.
    NotImplementedError: unknown implementation.
  Source: arXiv 2506.20354 and its official code; relative terms after arXiv 1901.02860 sec. 3.3.
    Dropout is elementwise; the official kernel drops whole segments and channels instead.
  """
  _check(q, k, v, k_time, k_chan, (bias_content, bias_time, bias_chan), window, key_mask)
  if not 0 <= dropout_rate < 1:
    raise ValueError(f"dropout_rate must be in [0, 1): got {dropout_rate}")
  if dropout_rate and dropout_key is None:
    raise ValueError(f"dropout_rate is {dropout_rate} but dropout_key is None: pass a key")
  if key_mask is not None:
    here = key_mask[:, None, :, None, None]
    k, v = (jnp.where(here, x, jnp.zeros((), x.dtype)) for x in (k, v))
  seed = jax.random.bits(dropout_key, (2,), jnp.uint32) if dropout_rate else None
  operands = Operands(q, k, v, k_time, k_chan, bias_content, bias_time, bias_chan, key_mask, seed)
  spec = Spec(int(window), bool(causal), bool(last_full), float(dropout_rate))
  if q.size == 0:
    return q
  out = dispatch.choose("mvpa", IMPLEMENTATIONS, ORDER, implementation, operands, spec)
  return out.astype(q.dtype)


def _check(q, k, v, k_time, k_chan, biases, window, key_mask):
  if q.ndim != 5 or k.ndim != 5:
    raise ValueError(
      f"q and k must be [batch, time, channels, heads, width]: got {q.shape} and {k.shape}"
    )
  batch, length, channels, heads, width = q.shape
  groups = k.shape[3]
  if k.shape != (batch, length, channels, groups, width) or v.shape != k.shape:
    raise ValueError(f"k {k.shape} and v {v.shape} must be like q {q.shape}, but for the heads")
  if groups == 0 or heads % groups:
    raise ValueError(f"the number of key heads must divide that of heads: got {groups}, {heads}")
  named = {
    "k_time": (k_time, (length, groups, width)),
    "k_chan": (k_chan, (channels, groups, width)),
    **dict(zip(("bias_content", "bias_time", "bias_chan"), ((x, (groups, width)) for x in biases))),
  }
  for name, (x, wanted) in named.items():
    if x.shape != wanted:
      raise ValueError(f"{name} must be {list(wanted)} for q {q.shape}: got {list(x.shape)}")
  if not all(x.dtype == q.dtype for x in (k, v, k_time, k_chan, *biases)):
    raise ValueError(f"all arrays must have one dtype, that of q: {q.dtype}")
  if not jnp.issubdtype(q.dtype, jnp.floating):
    raise ValueError(f"q must be floating point: got {q.dtype}")
  if window < 0:
    raise ValueError(f"window must be >= 0 segments: got {window}")
  if key_mask is not None and (key_mask.shape != (batch, channels) or key_mask.dtype != bool):
    raise ValueError(
      f"key_mask must be bool [{batch}, {channels}]: got {key_mask.dtype} {list(key_mask.shape)}"
    )
