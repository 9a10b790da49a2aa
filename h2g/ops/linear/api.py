"""Linear attention: signatures, checks, choice of implementation, shard_map edge.

Axes: B batch, T steps, H heads, K key heads (K divides H), D head width, E value width.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any
from typing import NamedTuple

from jax import Array
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from h2g.ops import dispatch
from h2g.ops import sharding as sharding_lib
from h2g.ops.linear import mosaic_gpu
from h2g.ops.linear import mosaic_tpu
from h2g.ops.linear import reference
from h2g.ops.linear import xla
from h2g.ops.linear.call import Spec
from h2g.ops.tiles import accumulator_dtype

# What a function here receives and returns: `call.py`. A kernel joins by adding a line here.
IMPLEMENTATIONS: Mapping[str, Callable[..., tuple[Array, Array]]] = dict(
  reference=reference.decay_attention,
  xla=xla.decay_attention,
  mosaic_gpu=mosaic_gpu.decay_attention,
  mosaic_tpu=mosaic_tpu.decay_attention,
)
ORDER: Mapping[str, tuple[str, ...]] = dict(
  gpu=("mosaic_gpu", "xla"), tpu=("mosaic_tpu", "xla"), cpu=("xla",)
)


class LinearOut(NamedTuple):
  """The output and the state after the last step.

  Attributes:
    out: [B, T, H, E] (of one step: [B, H, E]) in q's dtype.
    state: [B, H, D, E] float32, or [B, H, D, E + 1] with a normaliser (see `decay_attention`).
  """

  out: Array
  state: Array


def decay_attention(
  q: Array,
  k: Array,
  v: Array,
  *,
  decay: Array | None = None,
  causal: bool = True,
  normalize: bool = False,
  scale: float | None = None,
  state: Array | None = None,
  return_state: bool = False,
  lengths: Array | None = None,
  chunk_size: int | None = None,
  sharding: NamedSharding | PartitionSpec | None = None,
  implementation: str | None = None,
) -> Array | LinearOut:
  """Linear attention whose past fades: lightning, retention, simple gated linear attention.

    S_t = exp(decay_t) S_{t-1} + k_t v_t^T,   o_t = scale * S_t^T q_t            (causal)
    o_t = scale * sum_s exp(sum of decay over (min(s,t), max(s,t)]) (q_t.k_s) v_s   (not causal)

  Computed in chunks, so in O(T) time and with matmuls. Differentiable in everything, state
  included; the backward pass recomputes and keeps a state per group of chunks.

  Args:
    q: [B, T, H, D] float.
    k: [B, T, K, D] like q.
    v: [B, T, K, E] like q.
    decay: log of the factor lambda, at most 0: [H] constant (`retention_decay`,
      `lightning_decay`), or [B, T, H] for every step. None never forgets. -inf is a reset: put it
      at the first step of each document packed into a row.
    causal: False also reads the future, fading with distance alike.
    normalize: divide by the same sum with every v = 1, scale left out. For features that are not
      negative (q.k >= 0); where that sum is 0 the output is 0. The state then has one more value
      column, that of the ones: [B, H, D, E + 1].
    scale: defaults to D ** -0.5; to 1 with normalize.
    state: [B, H, D, E] S_0, float32; None is zero. It is accumulated and returned in float32.
    return_state: return `LinearOut`, with S_T.
    lengths: [B] int; steps at or past it are padding: ignored whatever stands there, output 0, and
      the state is that at the length. None: no padding.
    chunk_size: steps per chunk; None lets the implementation choose. The result does not depend on
      it.
    sharding: layout of q over a mesh, where q itself does not show it; batch and heads may be
      sharded.
    implementation: None chooses the best that can serve the call; a name means that one or an
      error.
  Returns:
    [B, T, H, E] in q's dtype, or LinearOut. Accumulated in float32 (float64 for float64 operands).
  Raises:
    ValueError: shapes or arguments disagree; a state without causal order.
    NotImplementedError: the named implementation cannot serve the call.
  Source: arXiv 2307.08621 eq. 5-7 (retention, chunks), arXiv 2401.04658 (lightning attention 2),
    arXiv 2312.06635 (gates), arXiv 2006.16236 eq. 12 (causal state).
  """
  _check(q, k, v, decay, lengths, chunk_size)
  batch, _, heads, width = q.shape
  dtype = accumulator_dtype(q, k, v)
  if scale is None:
    scale = 1.0 if normalize else width**-0.5
  carried = state is not None or return_state
  if not causal and decay is not None and carried:
    raise ValueError(
      "state and return_state with decay need causal=True: what fades in both directions has no "
      "state"
    )
  wanted = (batch, heads, width, v.shape[3] + normalize)
  if state is not None and state.shape != wanted:
    raise ValueError(
      f"state must be [B, H, D, {'E + 1' if normalize else 'E'}] = {wanted}: got {state.shape}"
    )
  decay = None if decay is None else decay.astype(dtype)
  if lengths is not None:
    q, k, v, decay = _without_padding(q, k, v, decay, lengths, return_state)
  if normalize:
    v = jnp.concatenate([v, jnp.ones((*v.shape[:3], 1), v.dtype)], axis=3)
  if state is None:
    state = jnp.zeros(wanted, dtype)
  # A normaliser is divided by before anything is rounded.
  spec = Spec(float(scale), chunk_size, jnp.dtype(dtype if normalize else q.dtype))

  def serve(q, k, v, decay, state):
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    if q.shape[1] == 0:
      return jnp.zeros((*q.shape[:3], v.shape[3]), spec.out_dtype), state
    one_way = lambda *args: dispatch.choose(
      "decay_attention", IMPLEMENTATIONS, ORDER, implementation, *args
    )
    if causal:
      return one_way(q, k, v, decay, state, spec)
    if decay is None:
      return _unordered(q, k, v, state, spec)
    return _both_ways(one_way, q, k, v, decay, state, spec), state

  out, state = sharding_lib.over_shards(
    serve,
    (q, k, v, decay, state.astype(dtype)),
    ("bthd", "bthd", "bthe", "h" if decay is None or decay.ndim == 1 else "bth", "bhde"),
    ("bthe", "bhde"),
    sharding,
  )
  if normalize:
    out = _divide(out, 0.0).astype(q.dtype)
  return LinearOut(out, state) if return_state else out


def decay_attention_step(
  q: Array,
  k: Array,
  v: Array,
  state: Array,
  *,
  decay: Array | None = None,
  normalize: bool = False,
  scale: float | None = None,
) -> LinearOut:
  """One step of `decay_attention`, for decoding: S' = exp(decay) S + k v^T, o = scale * S'^T q.

  Args:
    q: [B, H, D] float.
    k: [B, K, D] like q.
    v: [B, K, E] like q.
    state: [B, H, D, E] float32 (E + 1 with normalize), as `decay_attention` returns it.
    decay: [H] or [B, H] log decay of this step; None for none.
    normalize: as in `decay_attention`.
    scale: as in `decay_attention`.
  Returns:
    LinearOut: out [B, H, E] in q's dtype, and the state after the step.
  Raises:
    ValueError: shapes disagree.
  Source: as `decay_attention`.
  """
  for name, x in (("q", q), ("k", k), ("v", v)):
    if x.ndim != 3:
      raise ValueError(f"{name} must be [batch, heads, width], one step: got shape {x.shape}")
  with_time = lambda x: x[:, None]
  if decay is not None and decay.shape not in (q.shape[1:2], q.shape[:2]):
    raise ValueError(
      f"decay must be [H] = {q.shape[1:2]} or [B, H] = {q.shape[:2]}: got {decay.shape}"
    )
  # The general form on one step; the recurrence is its fastest implementation.
  result = decay_attention(
    with_time(q),
    with_time(k),
    with_time(v),
    decay=decay if decay is None or decay.ndim == 1 else with_time(decay),
    normalize=normalize,
    scale=scale,
    state=state,
    return_state=True,
    implementation="reference",
  )
  return LinearOut(result.out[:, 0], result.state)


def elu_plus_one(x: Array) -> Array:
  """elu(x) + 1: the positive feature map of arXiv 2006.16236 eq. 7."""
  # Not jax.nn.elu(x) + 1: that rounds what is close to 0 to 0.
  return jnp.where(x > 0, x + 1, jnp.exp(jnp.minimum(x, 0)))


def feature_map_attention(
  q: Array,
  k: Array,
  v: Array,
  *,
  feature_map: Callable[[Array], Array] = elu_plus_one,
  normalize: bool = True,
  eps: float = 0.0,
  **options: Any,
) -> Array | LinearOut:
  """Attention with a kernel in place of the exponential.

    o_t = sum_s (phi(q_t).phi(k_s)) v_s / (eps + sum_s phi(q_t).phi(k_s))

  over s <= t, or over all s with causal=False. The state is [B, H, F, E + 1] (E without normalize):
  sum_s phi(k_s) v_s^T, and in the last column sum_s phi(k_s).

  Args:
    q: [B, T, H, D] float.
    k: [B, T, K, D] like q.
    v: [B, T, K, E] like q.
    feature_map: phi, [.., D] -> [.., F], not negative. Applied to q and k.
    normalize: False leaves the sum in the numerator as it is.
    eps: added to the normaliser; 0 where it is 0 gives 0. The official code of the paper adds 1e-6.
    **options: as in `decay_attention`: decay, causal, state, return_state, lengths, chunk_size,
      sharding, implementation; scale defaults to 1.
  Returns:
    [B, T, H, E] in q's dtype, or LinearOut.
  Raises:
    ValueError: as `decay_attention`. NotImplementedError: likewise.
  Source: arXiv 2006.16236 eq. 5-12.
  """
  _check(q, k, v, None, None, None)
  return _with_features(decay_attention, q, k, v, feature_map, normalize, eps, options)


def feature_map_attention_step(
  q: Array,
  k: Array,
  v: Array,
  state: Array,
  *,
  feature_map: Callable[[Array], Array] = elu_plus_one,
  normalize: bool = True,
  eps: float = 0.0,
  decay: Array | None = None,
  scale: float = 1.0,
) -> LinearOut:
  """One step of `feature_map_attention`, for decoding.

  Args:
    q: [B, H, D] float.
    k: [B, K, D] like q.
    v: [B, K, E] like q.
    state: [B, H, F, E + 1] float32 (E without normalize), as `feature_map_attention` returns it.
    feature_map: as there.
    normalize: as there.
    eps: as there.
    decay: [H] or [B, H] log decay of this step; None for none.
    scale: as there.
  Returns:
    LinearOut: out [B, H, E] in q's dtype, and the state after the step.
  Raises:
    ValueError: shapes disagree.
  Source: arXiv 2006.16236 eq. 16-20.
  """
  step = lambda q, k, v, **options: decay_attention_step(q, k, v, **options)
  options = dict(state=state, decay=decay, scale=scale)
  return _with_features(step, q, k, v, feature_map, normalize, eps, options)


def retention_decay(heads: int) -> Array:
  """[H] float32 log decays of retention, log(1 - 2 ** (-5 - h)). Source: arXiv 2307.08621 eq. 8."""
  return jnp.log1p(-(2.0 ** (-5.0 - jnp.arange(heads, dtype=jnp.float32))))


def lightning_decay(heads: int, layer: int, layers: int) -> Array:
  """[H] float32 log decays of lightning attention, -(8 h / H) (1 - layer / layers).

  Args:
    heads: H.
    layer: number of this layer, from 0.
    layers: number of layers.
  Source: arXiv 2307.14995 section 3.1, with h from 0 as fla-org/flash-linear-attention counts it;
    MiniMax-01 uses slopes 2 ** (-8 (h + 1) / H) in place of 8 h / H.
  """
  if not 0 <= layer < layers:
    raise ValueError(f"layer {layer} must be from 0 to layers - 1 = {layers - 1}")
  return -(8 / heads) * (1 - layer / layers) * jnp.arange(heads, dtype=jnp.float32)


def _with_features(function, q, k, v, feature_map, normalize, eps, options):
  """`function` on features, divided by the normaliser plus eps."""
  options = dict(options)
  options.setdefault("scale", 1.0)
  dtype = accumulator_dtype(q, k, v)
  phi_q, phi_k = (feature_map(x) for x in (q, k))
  for name, x, y in (("q", q, phi_q), ("k", k, phi_k)):
    if y.shape[:-1] != x.shape[:-1] or y.dtype != x.dtype:
      raise ValueError(
        f"feature_map must keep all axes but the last, and the dtype: {name} of {x.dtype}{x.shape} "
        f"became {y.dtype}{y.shape}"
      )
  if eps == 0.0 or not normalize:
    return function(phi_q, phi_k, v, normalize=normalize, **options)
  # The column of ones goes in by hand, and comes out before it is divided by.
  wide = lambda x: x.astype(dtype)
  ones = jnp.ones((*v.shape[:-1], 1), dtype)
  v = jnp.concatenate([wide(v), ones], axis=-1)
  result = function(wide(phi_q), wide(phi_k), v, normalize=False, **options)
  if isinstance(result, LinearOut):
    return LinearOut(_divide(result.out, eps).astype(q.dtype), result.state)
  return _divide(result, eps).astype(q.dtype)


def _divide(out: Array, eps: float) -> Array:
  """The last column divides the others; 0 where it is 0."""
  values, total = out[..., :-1], out[..., -1:] + eps
  nothing = total == 0
  return jnp.where(
    nothing, jnp.zeros_like(values), values / jnp.where(nothing, jnp.ones_like(total), total)
  )


def _unordered(q, k, v, state, spec: Spec):
  """Everybody reads everything: S = S_0 + sum_s k_s v_s^T, o_t = scale * S^T q_t."""
  dtype = state.dtype
  sum_of = lambda formula, a, b: jnp.einsum(
    formula, a.astype(dtype), b.astype(dtype), precision="highest"
  )
  state = state + sum_of("bthd,bthe->bhde", k, v)
  return (sum_of("bthd,bhde->bthe", q, state) * spec.scale).astype(spec.out_dtype), state


def _both_ways(one_way, q, k, v, decay, state, spec: Spec):
  """The past, the future as the past of reversed time, less the diagonal, which both hold."""
  batch, _, heads, _ = q.shape
  dtype = state.dtype
  # The two halves meet before anything is rounded.
  wide = dataclasses.replace(spec, out_dtype=jnp.dtype(dtype))
  forward, _ = one_way(q, k, v, decay, state, wide)
  turn = lambda x: jnp.flip(x, axis=1)
  if decay.ndim == 3:
    # From t + 1 back to t fades what fades from t to t + 1.
    decay = jnp.concatenate([decay[:, 1:], jnp.zeros((batch, 1, heads), decay.dtype)], axis=1)
    decay = turn(decay)
  backward, _ = one_way(turn(q), turn(k), turn(v), decay, state, wide)
  products = jnp.sum(q.astype(dtype) * k.astype(dtype), -1, keepdims=True)
  diagonal = spec.scale * products * v.astype(dtype)
  return (forward + turn(backward) - diagonal).astype(spec.out_dtype)


def _without_padding(q, k, v, decay, lengths, return_state: bool):
  """Zeros at or past the lengths; where the state is wanted, no decay there, so that it stays."""
  steps = jnp.arange(q.shape[1], dtype=jnp.int32)
  valid = steps[None, :] < jnp.asarray(lengths).astype(jnp.int32)[:, None]
  clean = lambda x: jnp.where(valid[:, :, None, None], x, jnp.zeros_like(x))
  # A constant decay stays one where it can: zeros that fade are still zeros.
  if decay is not None and (decay.ndim == 3 or return_state):
    decay = decay if decay.ndim == 3 else decay[None, None, :]
    decay = jnp.broadcast_to(decay, q.shape[:3])
    decay = jnp.where(valid[:, :, None], decay, jnp.zeros_like(decay))
  return clean(q), clean(k), clean(v), decay


def _check(q, k, v, decay, lengths, chunk_size):
  for name, x in (("q", q), ("k", k), ("v", v)):
    if not jnp.issubdtype(x.dtype, jnp.floating):
      raise ValueError(f"{name} must be floating point: got {x.dtype}")
    if x.ndim != 4:
      raise ValueError(f"{name} must be [batch, steps, heads, width]: got shape {x.shape}")
  if not (q.dtype == k.dtype == v.dtype):
    raise ValueError(f"q, k and v must have one dtype: got {q.dtype}, {k.dtype}, {v.dtype}")
  batch, length, heads, width = q.shape
  key_heads = k.shape[2]
  if k.shape != (batch, length, key_heads, width):
    raise ValueError(
      f"k must be [{batch}, {length}, key heads, {width}] for q of shape {q.shape}: got {k.shape}"
    )
  if v.shape[:3] != k.shape[:3]:
    raise ValueError(f"v must be [B, T, K, E] with [B, T, K] = {k.shape[:3]} of k: got {v.shape}")
  if key_heads == 0 or heads % key_heads:
    raise ValueError(
      f"the number of key heads must divide that of heads: got {key_heads} and {heads}"
    )
  if decay is not None and not hasattr(decay, "shape"):
    raise ValueError(f"decay must be an array, [H] or [B, T, H]: got {decay!r}")
  fits = ((heads,), (batch, length, heads))
  if decay is not None and decay.shape not in fits:
    raise ValueError(f"decay must be [H] = {fits[0]} or [B, T, H] = {fits[1]}: got {decay.shape}")
  if decay is not None and not jnp.issubdtype(decay.dtype, jnp.floating):
    raise ValueError(f"decay must be floating point, a logarithm: got {decay.dtype}")
  if lengths is not None and (
    lengths.shape != (batch,) or not jnp.issubdtype(lengths.dtype, jnp.integer)
  ):
    raise ValueError(f"lengths must be int [B] = ({batch},): got {lengths.dtype}{lengths.shape}")
  if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
    raise ValueError(f"chunk_size must be a positive int: got {chunk_size!r}")
