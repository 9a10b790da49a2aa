"""Attention of one query over a cache: signature, checks, choice of implementation, shard edge."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import NamedTuple

from jax import Array
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from h2g.ops import dispatch
from h2g.ops import sharding as sharding_lib
from h2g.ops.cache import mosaic_gpu
from h2g.ops.cache import mosaic_tpu
from h2g.ops.cache import reference
from h2g.ops.cache import xla
from h2g.ops.cache.call import Operands
from h2g.ops.cache.call import Spec

# What a function here receives and returns: `call.py`. A kernel joins by adding a line here.
IMPLEMENTATIONS: Mapping[str, Callable[[Operands, Spec], tuple[Array, Array]]] = dict(
  reference=reference.decode_attention,
  xla=xla.decode_attention,
  mosaic_gpu=mosaic_gpu.decode_attention,
  mosaic_tpu=mosaic_tpu.decode_attention,
)
ORDER: Mapping[str, tuple[str, ...]] = dict(
  gpu=("mosaic_gpu", "xla"), tpu=("mosaic_tpu", "xla"), cpu=("xla",)
)


class DecodeOut(NamedTuple):
  """The output, and the log-sum-exp of the logits, sink included.

  Attributes:
    out: [B, H, E] in q's dtype.
    lse: [B, H] float32; -inf where there is nothing to attend to.
  """

  out: Array
  lse: Array


def decode_attention(
  q: Array,
  k: Array,
  v: Array,
  lengths: Array | None = None,
  *,
  ids: Array | None = None,
  scale: float | None = None,
  softcap: float | None = None,
  sinks: Array | None = None,
  return_lse: bool = False,
  sharding: NamedSharding | PartitionSpec | None = None,
  implementation: str | None = None,
) -> Array | DecodeOut:
  """Softmax attention of one query per head over the rows that its key head has kept.

    o[b,h] = sum_{c in R(b,g)} exp(x_c) v[b,g,c] / (exp(sinks[h]) + sum_{c in R(b,g)} exp(x_c))
    x_c    = cap(scale * q[b,h].k[b,g,c]),   g = h // (H // K)

  R(b,g) are the first lengths[b,g] rows, or those that the first lengths[b,g] ids name. cap(x) is
  softcap * tanh(x / softcap), the identity without softcap; no sink term without sinks. The order
  of rows does not matter. Differentiable in q, k, v and sinks.

  Axes: B batch, H heads, K key heads (K divides H), C rows, D head width, E value width.

  Args:
    q: [B, H, D] float.
    k: [B, K, C, D] like q, heads before rows.
    v: [B, K, C, E] like q.
    lengths: [B, K] or [B] int, how many rows (with ids: how many ids) count; what lies beyond has
      no effect, NaN included. None: all.
    ids: [B, K, n] int, rows to read of a cache that was not compacted, as `Kept.ids`. Ids outside
      0 .. C - 1 name nothing; a row that is named twice counts twice.
    scale: defaults to D ** -0.5.
    softcap: positive; None leaves the logits.
    sinks: [H] float, a logit per head that takes probability mass and gives no value.
    return_lse: return `DecodeOut`; the log-sum-exp merges outputs over parts of a cache.
    sharding: layout of q over a mesh, where q itself does not show it; batch and heads may be
      sharded.
    implementation: None chooses the best that can serve the call; a name means that one or an
      error.
  Returns:
    [B, H, E] in q's dtype, zeros where nothing is kept; or DecodeOut. Accumulated in float32
    (float64 for float64 operands).
  Raises:
    ValueError: shapes or arguments disagree; the message shows both.
    NotImplementedError: the named implementation cannot serve the call.
  Source: arXiv 1706.03762 eq. 1; online form arXiv 1805.02867; ragged heads as arXiv 2407.11550
    needs them.
  """
  for name, x, rank in (("q", q, 3), ("k", k, 4), ("v", v, 4)):
    if not jnp.issubdtype(x.dtype, jnp.floating):
      raise ValueError(f"{name} must be floating point: got {x.dtype}")
    if x.ndim != rank:
      shape = "[B, H, D], one query per head" if rank == 3 else "[B, K, C, width]"
      raise ValueError(f"{name} must be {shape}: got shape {x.shape}")
  if not (q.dtype == k.dtype == v.dtype):
    raise ValueError(f"q, k and v must have one dtype: got {q.dtype}, {k.dtype}, {v.dtype}")
  batch, heads, width = q.shape
  key_heads, rows = k.shape[1:3]
  if k.shape[0] != batch or k.shape[3] != width:
    raise ValueError(f"k must be [{batch}, K, C, {width}] for q of shape {q.shape}: got {k.shape}")
  if v.shape[:3] != k.shape[:3]:
    raise ValueError(f"v must be [B, K, C, E] with [B, K, C] = {k.shape[:3]} of k: got {v.shape}")
  if key_heads == 0 or heads % key_heads:
    raise ValueError(
      f"the number of key heads must divide that of heads: got {key_heads} and {heads}"
    )
  if sinks is not None and sinks.shape != (heads,):
    raise ValueError(f"sinks must be [{heads}], one per head: got shape {sinks.shape}")
  if softcap is not None and not softcap > 0:
    raise ValueError(f"softcap must be positive: got {softcap}")
  if ids is not None and (
    ids.ndim != 3
    or ids.shape[:2] != (batch, key_heads)
    or not jnp.issubdtype(ids.dtype, jnp.integer)
  ):
    raise ValueError(f"ids must be int [{batch}, {key_heads}, n]: got {ids.dtype}{list(ids.shape)}")
  if lengths is not None and not hasattr(lengths, "shape"):
    raise ValueError(f"lengths must be an int array, [B] or [B, K]: got {lengths!r}")
  if lengths is not None and (
    lengths.shape not in ((batch,), (batch, key_heads))
    or not jnp.issubdtype(lengths.dtype, jnp.integer)
  ):
    raise ValueError(
      f"lengths must be int [{batch}] or [{batch}, {key_heads}]: got "
      f"{lengths.dtype}{list(lengths.shape)}"
    )
  if lengths is None and ids is None:
    lengths = jnp.full((batch, key_heads), rows, jnp.int32)
  elif lengths is None:
    # Up to the last id that names a row: lists are padded behind.
    place = jnp.arange(1, ids.shape[2] + 1, dtype=jnp.int32)[None, None, :]
    lengths = jnp.where(ids >= 0, place, 0).max(-1, initial=0)
  lengths = lengths[:, None] if lengths.ndim == 1 else lengths
  lengths = jnp.broadcast_to(lengths.astype(jnp.int32), (batch, key_heads))
  spec = Spec(
    float(width**-0.5 if scale is None else scale), None if softcap is None else float(softcap)
  )

  def serve(*operands):
    return dispatch.choose(
      "decode_attention", IMPLEMENTATIONS, ORDER, implementation, Operands(*operands), spec
    )

  result = sharding_lib.over_shards(
    serve,
    (q, k, v, lengths, None if ids is None else ids.astype(jnp.int32), sinks),
    ("bhd", "bhcd", "bhce", "bh", "bhn", "h"),
    ("bhe", "bh"),
    sharding,
  )
  return DecodeOut(*result) if return_lse else result[0]
