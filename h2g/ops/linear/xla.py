"""Decay attention in chunks, from plain XLA operations: matmuls inside a chunk, a state between.

Plan. Time is cut into chunks of C steps. Inside a chunk the weights are a C x C matrix (quadratic,
two matmuls), from before the chunk comes the state (two more): T * (2 C (D + E) + 4 D E) flops per
head. Several chunks go through each matmul together; their states follow from what each chunk adds
by the same weights one level up, chunks in place of steps, so a group of G chunks costs one more
small product. Groups are a scan that carries the state [B, H, D, E].

The backward pass walks the scan from the end and differentiates one recomputed step at a time: what
is kept is the state at the T / (C G) cuts. Heads are moved before time inside a step, where a group
is small enough for the caches: on a CPU a third less time than moving whole arrays first. Batch and
heads stay axes of their own, so that either may be sharded.
"""

import functools

import jax
from jax import Array
import jax.numpy as jnp

from h2g.ops import dispatch
from h2g.ops import tiles
from h2g.ops import tuning
from h2g.ops.linear.call import Spec


def decay_attention(q, k, v, decay, state, spec: Spec) -> tuple[Array, Array]:
  """See `h2g.ops.linear.decay_attention`. Serves every call."""
  length, heads = q.shape[1:3]
  chunk, group = _sizes(length, spec.chunk_size)
  by_step = decay is not None and decay.ndim == 3
  outs, start = [], 0
  # Whole groups, then whole chunks, then what is left: no padding, which would decay the state.
  while start < length:
    left = length - start
    size = min(chunk, left)
    count = min(group, left // size)
    stop = left // (size * count) * (size * count) + start
    cut = lambda x, start=start, stop=stop: jax.lax.slice_in_dim(x, start, stop, axis=1)
    sliced = cut(q), cut(k), cut(v), cut(decay) if by_step else None
    constant = None if by_step else _weights(*_multiples(decay, heads, size, state.dtype), count)
    out, state = _stretch(sliced, constant, state, spec, size, count)
    outs.append(out)
    start = stop
  return outs[0] if len(outs) == 1 else jnp.concatenate(outs, axis=1), state


def _sizes(length: int, chunk_size: int | None) -> tuple[int, int]:
  """(steps per chunk, chunks per group)."""
  on_cpu = dispatch.platform() == "cpu"
  # Accelerators want few large launches; a CPU wants its tiles in cache.
  closed_form = dict(chunk=64, group=1 if on_cpu else 16)
  sizes = tuning.sizes("linear.xla", closed_form, length=length)
  chunk = sizes["chunk"] if chunk_size is None else chunk_size
  return min(chunk, length), sizes["group"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _stretch(sliced, constant, state: Array, spec: Spec, chunk: int, group: int):
  """(out [B, T, H, E], state) of T = n * group * chunk steps of time.

  Args:
    sliced: (q, k, v, log decay or None), [B, T, H, ...].
    constant: weights of any group (see `_weights`), or None where they differ by step.
    state: [B, H, D, E].
    spec: of the call.
    chunk: C.
    group: G.
  """
  out, state, _ = _scan(sliced, constant, state, spec, chunk, group)
  return out, state


def _scan(sliced, constant, state, spec: Spec, chunk: int, group: int):
  """(out, state, [n, B, H, D, E] states before each group)."""
  step = functools.partial(_group, spec=spec, shape=(group, chunk))
  v, size = sliced[2], group * chunk
  if v.shape[1] == size:
    out, after = step(sliced, constant, state)
    return out, after, state[None]

  def body(carry, n):
    state, out = carry
    new, after = step(_take(sliced, n, size), constant, state)
    return (after, _put(out, new, n)), state

  out = jnp.zeros(v.shape, spec.out_dtype)
  (state, out), states = jax.lax.scan(body, (state, out), _numbers(v, size))
  return out, state, states


def _forward(sliced, constant, state, spec, chunk, group):
  # An array in place of a flag: residuals are arrays, and its shape is static.
  learned = any(x.perturbed for x in jax.tree.leaves(constant, is_leaf=_is_primal))
  sliced, constant, state = (
    jax.tree.map(lambda x: x.value, x, is_leaf=_is_primal) for x in (sliced, constant, state)
  )
  out, after, states = _scan(sliced, constant, state, spec, chunk, group)
  return (out, after), (sliced, constant, states, jnp.zeros((int(learned),)))


def _backward(spec: Spec, chunk: int, group: int, saved, cotangents):
  sliced, constant, states, learned = saved
  g_out, g_state = map(_instantiate, cotangents)
  size = group * chunk
  # The weights of a constant decay cost as much to differentiate as a matmul: only where asked for.
  wanted = constant if learned.shape[0] else None

  def pull(parts, state, g_out, g_state):
    def step(parts, wanted, state):
      weights = constant if wanted is None else wanted
      return _group(parts, weights, state, spec=spec, shape=(group, chunk))

    _, back = jax.vjp(step, parts, wanted, state)
    return back((g_out, g_state))

  if len(states) == 1:
    d_sliced, d_constant, g_state = pull(sliced, states[0], g_out, g_state)
  else:

    def body(carry, x):
      g_state, d_sliced, d_constant = carry
      n, state = x
      new, more, g_state = pull(_take(sliced, n, size), state, _take(g_out, n, size), g_state)
      d_sliced = jax.tree.map(lambda total, part: _put(total, part, n), d_sliced, new)
      d_constant = jax.tree.map(jnp.add, d_constant, more)
      return (g_state, d_sliced, d_constant), None

    zeros = jax.tree.map(jnp.zeros_like, (sliced, wanted))
    (g_state, d_sliced, d_constant), _ = jax.lax.scan(
      body, (g_state, *zeros), (_numbers(g_out, size), states), reverse=True
    )
  if wanted is None:
    d_constant = jax.tree.map(jnp.zeros_like, constant)
  return d_sliced, d_constant, g_state


_stretch.defvjp(_forward, _backward, symbolic_zeros=True)


def _is_primal(x) -> bool:
  return hasattr(x, "perturbed")


def _instantiate(x) -> Array:
  if isinstance(x, jax.custom_derivatives.SymbolicZero):
    return jnp.zeros(x.aval.shape, x.aval.dtype)
  return x


def _numbers(x: Array, size: int) -> Array:
  return jnp.arange(x.shape[1] // size, dtype=jnp.int32)


def _take(tree, n, size: int):
  """Piece n of time."""
  return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, n * size, size, 1), tree)


def _put(total: Array, part: Array, n) -> Array:
  return jax.lax.dynamic_update_slice_in_dim(total, part, n * part.shape[1], 1)


def _multiples(decay, heads: int, chunk: int, dtype) -> tuple[Array, Array]:
  """(sums, resets) [1, H, 1, C] of a decay that is the same at every step: multiples, exact."""
  times = jnp.arange(1, chunk + 1)
  if decay is None:
    decay = jnp.zeros((heads,), dtype)
  reset = jnp.exp(decay) == 0
  finite = jnp.where(reset, jnp.zeros_like(decay), decay)
  wide = lambda x: jnp.reshape(x[:, None] * times.astype(x.dtype)[None, :], (1, heads, 1, chunk))
  return wide(finite), wide(reset.astype(jnp.int32))


def _weights(sums: Array, resets: Array, chunks: int):
  """(weights inside each chunk, weights between the chunks of a group), from [B|1, H, G|1, C]."""
  ends = lambda x: jnp.cumsum(jnp.broadcast_to(x[..., -1], (*x.shape[:2], chunks)), -1)
  return tiles.decay_weights(sums, resets), tiles.decay_weights(ends(sums), ends(resets))


def _group(sliced, constant, state: Array, *, spec: Spec, shape: tuple[int, int]):
  """(out [B, G * C, H, E], state after) of one group of G chunks; arguments as in `_stretch`."""
  dtype, (chunks, chunk) = state.dtype, shape

  def cut(x):
    x = jnp.swapaxes(x, 1, 2)
    return jnp.reshape(x, (*x.shape[:2], chunks, chunk, *x.shape[3:]))

  q, k, v, decay = jax.tree.map(cut, sliced)
  dot = functools.partial(_dot, operand_dtype=_operand_dtype(q, dtype), dtype=dtype)
  weights, above = _weights(*tiles.decay_sums(decay), chunks) if constant is None else constant
  added = tiles.decay_keys(k, v, weights, dot)
  if chunks == 1:
    before = state[:, :, None]
    state = weights.whole[:, :, 0] * state + added[:, :, 0]
  else:
    # States by the same weights one level up: a chunk is a step that adds D x E numbers.
    after = jnp.einsum("bhts,bhsde->bhtde", *_same_lanes(above.within, added), precision="highest")
    after = after + above.since[..., None] * state[:, :, None]
    before = jnp.concatenate([state[:, :, None], after[:, :, :-1]], axis=2)
    state = after[:, :, -1]
  out = tiles.decay_output(q, k, v, before, weights, dot) * spec.scale
  out = jnp.reshape(out, (*out.shape[:2], chunks * chunk, -1)).astype(spec.out_dtype)
  return jnp.swapaxes(out, 1, 2), state


def _same_lanes(a: Array, b: Array) -> tuple[Array, Array]:
  """`a` with the leading two axes of `b`, of which it may have 1."""
  return jnp.broadcast_to(a, (*b.shape[:2], *a.shape[2:])), b


def _operand_dtype(x: Array, dtype):
  """Of what goes into matmuls: as it comes on accelerators, the accumulator's on a CPU."""
  return dtype if dispatch.platform() == "cpu" else x.dtype


def _dot(a: Array, b: Array, axis_a: int, axis_b: int, *, operand_dtype, dtype) -> Array:
  lanes = tuple(range(a.ndim - 2))
  precision = jax.lax.Precision.HIGHEST if operand_dtype != jnp.bfloat16 else None
  return jax.lax.dot_general(
    a.astype(operand_dtype),
    b.astype(operand_dtype),
    (((a.ndim + axis_a,), (b.ndim + axis_b,)), (lanes, lanes)),
    precision=precision,
    preferred_element_type=dtype,
  )
