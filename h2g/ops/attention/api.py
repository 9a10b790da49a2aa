"""The public signature of attention: checks, choice of implementation, the shard_map edge."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from h2g.ops import dispatch
from h2g.ops import masks
from h2g.ops import sharding as sharding_lib
from h2g.ops import tiles
from h2g.ops.attention import call as call_lib
from h2g.ops.attention import cudnn
from h2g.ops.attention import mosaic_gpu
from h2g.ops.attention import mosaic_tpu
from h2g.ops.attention import reference
from h2g.ops.attention import xla
from h2g.ops.attention.call import AttentionOut
from h2g.ops.attention.call import Operands
from h2g.ops.attention.call import Spec
from h2g.ops.checks import check_qkv

# An implementation is a function (Operands, Spec) -> AttentionOut. A kernel joins by adding a line
# here.
IMPLEMENTATIONS: Mapping[str, Callable[[Operands, Spec], AttentionOut]] = dict(
  reference=reference.attention,
  xla=xla.attention,
  cudnn=cudnn.attention,
  mosaic_gpu=mosaic_gpu.attention,
  mosaic_tpu=mosaic_tpu.attention,
)
ORDER: Mapping[str, tuple[str, ...]] = dict(
  gpu=("cudnn", "mosaic_gpu", "xla"), tpu=("mosaic_tpu", "xla"), cpu=("xla",)
)


def attention(
  q: Array,
  k: Array,
  v: Array,
  *,
  bias: Array | None = None,
  mask: masks.Mask | Array | None = None,
  scale: float | None = None,
  softcap: float | None = None,
  sinks: Array | None = None,
  logits_fn: Callable[..., Array] | None = None,
  logits_args: tuple[Any, ...] = (),
  dropout_rate: float = 0.0,
  dropout_key: Array | None = None,
  return_lse: bool = False,
  return_column_mass: bool = False,
  return_entropy: bool = False,
  top_keys: int = 0,
  sharding: NamedSharding | PartitionSpec | None = None,
  implementation: str | None = None,
) -> Array | AttentionOut:
  """Softmax attention.

    x[b,h,t,s] = f(cap(scale * q[b,t,h].k[b,s,g] + bias[b,h,t,s]))  where the mask attends
    w[b,h,t,s] = exp(x[b,h,t,s]) / (exp(sinks[h]) + sum_s exp(x[b,h,t,s]))
    o[b,t,h]   = sum_s drop(w)[b,h,t,s] v[b,s,g],  g = h // (H // K)

  with cap(x) = softcap * tanh(x / softcap) and f = logits_fn, each the identity where not given,
  and no sink term without sinks. A row that attends to nothing gives zeros, and zero gradients.

  Axes: B batch, T queries, S keys, H heads, K key heads (K divides H), D head width, E value width.

  Args:
    q: [B, T, H, D] float.
    k: [B, S, K, D] like q.
    v: [B, S, K, E] like q.
    bias: [B|1, H|1, T|1, S|1] float, added to the logits; differentiable in every broadcast form.
      -inf masks.
    mask: `h2g.ops.masks.Mask`, or [B|1, H|1, T|1, S|1] bool; True attends. What stands in rows of
      k and v that a padding or segment mask excludes altogether has no effect, NaN included.
    scale: defaults to D ** -0.5.
    softcap: positive; None leaves the logits.
    sinks: [H] float, a learned logit per head that takes probability mass and gives no value;
      differentiable.
    logits_fn: `logits_fn(logits, indices, *logits_args) -> logits`, elementwise, called on tiles:
      logits are float32 of some shape of rank 4, `indices` (batch, head, query, key) are int32
      arrays that broadcast against them. Differentiable in the logits, in logits_args, and in
      float arrays it closes over (those are found by tracing it on scalars and mapped with vmap;
      logits_args is faster). Make it once: a new function object compiles again.
    logits_args: tuple of pytrees of arrays.
    dropout_rate: share of the weights that is dropped; the others are divided by 1 - rate.
    dropout_key: a jax.random key, required when dropout_rate > 0. Which weights drop depends on
      the key and on (b, h, t, s) alone: the same for every implementation and sharding.
    return_lse: also return the log-sum-exp of the logits (differentiable).
    return_column_mass: also return the sum over queries of each key's weights (differentiable).
    return_entropy: also return the entropy of each row of weights, in nats (differentiable).
    top_keys: also return this many keys with the largest weights of every query; 0 for none.
    sharding: how q is laid out over a mesh: a NamedSharding, or a PartitionSpec for the mesh in
      context. Batch and heads may be sharded; k, v, bias, mask and sinks follow. None reads it
      from q where q shows it (an array that is laid out over several devices, or an explicit mesh
      axis).
    implementation: None chooses the best that can serve the call; a name means that one or an
      error.
  Returns:
    [B, T, H, E] in q's dtype, accumulated in float32 (float64 for float64 operands). With any of
    the return_ arguments or top_keys: an AttentionOut whose other fields are None. Statistics are
    those of w, before dropout; lse includes the sink, and is -inf for a row that attends to
    nothing.
  Raises:
    ValueError: shapes or arguments disagree; the message shows both.
    NotImplementedError: the named implementation cannot serve the call; the message says why.
  Source: arXiv 1706.03762 eq. 1; online form arXiv 1805.02867; tiles arXiv 2205.14135; grouped
    heads arXiv 2305.13245; soft cap arXiv 2408.00118 section 2; sinks arXiv 2309.17453 and the
    gpt-oss model card.
  """
  _check(q, k, v, bias, sinks, softcap, logits_fn, logits_args, dropout_rate, dropout_key, top_keys)
  batch, num_queries, heads, width = q.shape
  num_keys = k.shape[1]
  if mask is not None:
    mask = masks.as_mask(mask)
    mask.check(batch, heads, num_queries, num_keys)
  if logits_fn is not None:
    logits_fn, logits_args = _hoist(logits_fn, tuple(logits_args), tiles.accumulator_dtype(q, k, v))
  spec = Spec(
    scale=float(width**-0.5 if scale is None else scale),
    softcap=None if softcap is None else float(softcap),
    logits_fn=logits_fn,
    dropout_rate=float(dropout_rate),
    lse=return_lse,
    column_mass=return_column_mass,
    entropy=return_entropy,
    top_keys=top_keys,
  )
  seed = jax.random.bits(dropout_key, (2,), jnp.uint32) if dropout_rate > 0 else None
  operands = Operands(q, k, v, bias, mask, sinks, tuple(logits_args), seed)
  serve = lambda operands: _serve(operands, spec, implementation)
  result = _sharded(serve, operands, spec, sharding)
  only_out = not (return_lse or spec.statistics)
  return result.out if only_out else result


def _serve(operands: Operands, spec: Spec, implementation: str | None) -> AttentionOut:
  """One device's part of the call."""
  if 0 in operands.q.shape or 0 in operands.v.shape:
    implementation = "reference"  # no tile to compute
  return dispatch.choose(
    "attention", IMPLEMENTATIONS, ORDER, implementation, _without_padding(operands), spec
  )


def _without_padding(operands: Operands) -> Operands:
  """Zeroes rows that the mask excludes altogether, so that 0 * NaN never meets a sum."""
  if operands.mask is None:
    return operands
  valid_keys = operands.mask.valid_keys(operands.k.shape[1])
  valid_queries = operands.mask.valid_queries(operands.q.shape[1])
  clean = lambda x, valid: (
    x if valid is None else jnp.where(valid[:, :, None, None], x, jnp.zeros_like(x))
  )
  return operands._replace(
    q=clean(operands.q, valid_queries),
    k=clean(operands.k, valid_keys),
    v=clean(operands.v, valid_keys),
  )


def _check(
  q, k, v, bias, sinks, softcap, logits_fn, logits_args, dropout_rate, dropout_key, top_keys
):
  for name, x in (("q", q), ("k", k), ("v", v), ("bias", bias), ("sinks", sinks)):
    if x is not None and not hasattr(x, "dtype"):
      raise ValueError(f"{name} must be an array: got {type(x).__name__}")
  check_qkv(q, k, v)
  batch, num_queries, heads, _ = q.shape
  num_keys = k.shape[1]
  if bias is not None:
    wanted = (batch, heads, num_queries, num_keys)
    if bias.ndim != 4 or any(have not in (1, want) for have, want in zip(bias.shape, wanted)):
      raise ValueError(f"bias must broadcast to {wanted}, axis by axis: got shape {bias.shape}")
    if not jnp.issubdtype(bias.dtype, jnp.floating):
      raise ValueError(f"bias must be floating point (a bool array is a mask): got {bias.dtype}")
  if sinks is not None and sinks.shape != (heads,):
    raise ValueError(f"sinks must be [{heads}], one per head: got shape {sinks.shape}")
  if sinks is not None and not jnp.issubdtype(sinks.dtype, jnp.floating):
    raise ValueError(f"sinks must be floating point: got {sinks.dtype}")
  if softcap is not None and not softcap > 0:
    raise ValueError(f"softcap must be positive: got {softcap}")
  if logits_args and logits_fn is None:
    raise ValueError("logits_args were given without logits_fn")
  if not 0 <= dropout_rate < 1:
    raise ValueError(f"dropout_rate must be in [0, 1): got {dropout_rate}")
  if dropout_rate > 0 and dropout_key is None:
    raise ValueError(
      f"dropout_rate is {dropout_rate} but dropout_key is None: pass a jax.random key"
    )
  if not 0 <= top_keys <= num_keys:
    raise ValueError(
      f"top_keys must be between 0 and the number of keys {num_keys}: got {top_keys}"
    )


def _hoist(logits_fn, logits_args, dtype):
  """Arrays under differentiation that the hook closes over become arguments of it."""
  index = jnp.zeros((), jnp.int32)

  def scalar(logit, batch, head, query, key, *args):
    return jnp.reshape(logits_fn(logit, call_lib.Indices(batch, head, query, key), *args), ())

  try:
    converted, captured = jax.closure_convert(
      scalar, jnp.zeros((), dtype), index, index, index, index, *logits_args
    )
  except (TypeError, ValueError, IndexError):
    return (
      logits_fn,
      logits_args,
    )  # Not a function of scalars; then it closes over nothing we could find.
  if not captured:
    return logits_fn, logits_args
  return call_lib.elementwise(converted), (*logits_args, *captured)


def _sharded(serve, operands: Operands, spec: Spec, sharding) -> AttentionOut:
  """The call, once per shard of batch or heads; masks and hooks see global numbers."""
  mask_leaves, mask_tree = jax.tree.flatten(operands.mask)
  args_leaves, args_tree = jax.tree.flatten(operands.logits_args)
  whole = lambda x: "." * jnp.ndim(x)
  mask_axes = [] if operands.mask is None else operands.mask.axes()
  mask_axes = ["".join(a or "." for a in axes) for axes in mask_axes]
  arrays = (*operands[:4], operands.sinks, operands.seed, *mask_leaves, *args_leaves)
  axes = ("bthd", "bshd", "bshe", "bhts", "h", ".", *mask_axes, *map(whole, args_leaves))

  def local(q, k, v, bias, sinks, seed, *leaves, origin):
    mask = jax.tree.unflatten(mask_tree, leaves[: len(mask_leaves)])
    logits_args = jax.tree.unflatten(args_tree, leaves[len(mask_leaves) :])
    if origin is not None:
      mask = None if mask is None else mask.shifted(*origin)
      origin = jnp.stack(origin)
    return serve(Operands(q, k, v, bias, mask, sinks, logits_args, seed, origin))

  rows = lambda wanted: "bht" if wanted else None
  out_axes = AttentionOut(
    "bthe",
    rows(spec.lse),
    rows(spec.column_mass),
    rows(spec.entropy),
    call_lib.TopKeys("bhtn", "bhtn") if spec.top_keys else None,
  )
  return sharding_lib.over_shards(local, arrays, axes, out_axes, sharding, origin=True)
