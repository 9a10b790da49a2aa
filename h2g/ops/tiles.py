"""Mathematics of one tile, written once: XLA loops and kernels call the same functions.

Functions here take and return arrays only, know nothing about memory or grids, and are tested
alone.
"""

import math
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp

# Below every logit, and finite: a row that has seen nothing then needs no case of its own in each
# tile, which keeps maximum, subtraction and exponential one fused loop.
LOWEST = -1e30


class SoftmaxState(NamedTuple):
  """A softmax-weighted sum in progress (arXiv 1805.02867 alg. 3, arXiv 2205.14135 alg. 1).

  Attributes:
    acc: [.., queries, E] sum of exp(logits - largest) v so far.
    largest: [.., queries] largest logit so far; LOWEST before the first.
    total: [.., queries] sum of exp(logits - largest) so far.
  """

  acc: Array
  largest: Array
  total: Array


def accumulator_dtype(*arrays: Array):
  """float64 where any operand is, else float32."""
  return jnp.float64 if any(x.dtype == jnp.float64 for x in arrays) else jnp.float32


def softmax_init(shape: tuple[int, ...], width: int, dtype=jnp.float32) -> SoftmaxState:
  """Nothing seen yet: `shape` is [.., queries], `width` is E."""
  return SoftmaxState(
    jnp.zeros((*shape, width), dtype), jnp.full(shape, LOWEST, dtype), jnp.zeros(shape, dtype)
  )


def finite_or_zero(x: Array) -> Array:
  """-inf (nothing was seen) becomes 0, so that exp(-inf - x) is 0 and not NaN."""
  return jnp.where(x == -jnp.inf, jnp.zeros_like(x), x)


def softmax_step(state: SoftmaxState | None, logits: Array, weigh) -> SoftmaxState:
  """Adds one tile of logits.

  Args:
    state: so far; None where this is the first tile.
    logits: [.., queries, keys]; -inf where masked.
    weigh: function from exp(logits - largest) [.., queries, keys] to its product with v [..,
      queries, E]; dropout goes in there, since it must not touch `total`.
  """
  largest = logits.max(-1, initial=LOWEST)
  if state is not None:
    largest = jnp.maximum(state.largest, largest)
  exps = jnp.exp(logits - largest[..., None])
  if state is None:
    return SoftmaxState(weigh(exps), largest, exps.sum(-1))
  decay = jnp.exp(state.largest - largest)
  acc = state.acc * decay[..., None] + weigh(exps)
  return SoftmaxState(acc, largest, state.total * decay + exps.sum(-1))


def softmax_finish(state: SoftmaxState, sink: Array | None = None) -> tuple[Array, Array]:
  """Divides, once.

  Args:
    state: all tiles seen.
    sink: logit of a key without value that takes part in the sum, broadcastable to `total`; None
      for none.
  Returns:
    (output [.., queries, E], log-sum-exp [.., queries]); zeros and -inf (or the sink) where
    nothing was seen.
  """
  acc, largest, total = state
  if sink is not None:
    joint = jnp.maximum(largest, jnp.broadcast_to(sink, largest.shape))
    decay = jnp.exp(largest - joint)
    total = total * decay + jnp.exp(sink - joint)
    acc, largest = acc * decay[..., None], joint
  seen = total > 0
  divisor = jnp.where(seen, total, jnp.ones_like(total))
  lse = jnp.where(seen, jnp.log(divisor) + largest, -jnp.inf)
  return acc / divisor[..., None], lse


def mix32(x: Array) -> Array:
  """A bijection of uint32 that scatters nearby inputs (two multiplications, three shifts)."""
  x = x ^ (x >> jnp.uint32(16))
  x = x * jnp.uint32(0x7FEB352D)
  x = x ^ (x >> jnp.uint32(15))
  x = x * jnp.uint32(0x846CA68B)
  return x ^ (x >> jnp.uint32(16))


def dropout_keep(
  seed: Array, batch: Array, head: Array, query: Array, key: Array, *, rate: float
) -> Array:
  """Which weights survive dropout, from their position alone: equal for every tiling and sharding.

  Args:
    seed: [2] uint32.
    batch, head, query, key: int32 index arrays that broadcast against one another.
    rate: probability of being dropped, in [0, 1).
  Returns:
    bool, of the broadcast shape.
  """
  word = lambda x: x.astype(jnp.uint32)
  one = lambda x: jnp.reshape(x, (1,) * batch.ndim)
  row = mix32(word(query) + mix32(word(head) + mix32(word(batch) + one(seed[0]))))
  bits = mix32((row ^ one(seed[1])) + word(key) * jnp.uint32(0x9E3779B1))
  return bits >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))


def kept(key: Array, rate: float, shape: tuple[int, ...]) -> Array:
  """[shape] bool, False with probability `rate` in [0, 1): which entries survive dropout.

  From the entry's position, by `dropout_keep`: a dozen integer operations that fuse with whatever
  reads them, where `jax.random` writes each of threefry's rounds to memory on a CPU.
  """
  seed = jax.random.bits(key, (2,), jnp.uint32)
  rows, columns = math.prod(shape[:-1]), shape[-1] if shape else 1
  zero = jnp.zeros((1, 1), jnp.int32)
  row, column = (jnp.arange(size, dtype=jnp.int32) for size in (rows, columns))
  keep = dropout_keep(seed, zero, zero, row[:, None], column[None, :], rate=rate)
  return keep.reshape(shape)


class DecayWeights(NamedTuple):
  """How much is left of what one place wrote where another reads it, inside a tile of C steps.

  With G_t the sum of the tile's log decays up to and including step t:

  Attributes:
    within: [.., C, C] exp(G_t - G_s), of key s as query t sees it; 0 where s > t.
    since: [.., C, 1] exp(G_t), of the state before the tile as query t sees it.
    until: [.., C, 1] exp(G_C - G_s), of key s as the state after the tile sees it.
    whole: [.., 1, 1] exp(G_C), of the state before the tile as the state after it sees it.
  """

  within: Array
  since: Array
  until: Array
  whole: Array


def decay_sums(log_decay: Array) -> tuple[Array, Array]:
  """(running sums of log decays, running number of resets), both [.., C], for `decay_weights`.

  A decay of zero (log decay -inf, or so low that exp gives 0) is a reset. It is counted instead of
  summed, so that differences of sums never meet inf - inf.
  """
  reset = jnp.exp(log_decay) == 0
  finite = jnp.where(reset, jnp.zeros_like(log_decay), log_decay)
  return jnp.cumsum(finite, -1), jnp.cumsum(reset.astype(jnp.int32), -1)


def decay_weights(sums: Array, resets: Array) -> DecayWeights:
  """Weights of one tile; only differences of sums are exponentiated, so long sums are no harm.

  Args:
    sums: [.., C] running sums of log decays, each of which is at most 0.
    resets: [.., C] int32 running number of resets.
  """

  def exp(difference, kept):
    # The inner `where` keeps what is masked from overflowing, whose gradient would be NaN.
    zero = jnp.zeros_like(difference)
    return jnp.where(kept, jnp.exp(jnp.where(kept, difference, zero)), zero)

  steps = jnp.arange(sums.shape[-1], dtype=jnp.int32)
  past = jnp.reshape(steps[:, None] >= steps[None, :], (1,) * (sums.ndim - 1) + 2 * steps.shape)
  alive = resets[..., :, None] == resets[..., None, :]
  last, last_resets = sums[..., -1:], resets[..., -1:]
  return DecayWeights(
    exp(sums[..., :, None] - sums[..., None, :], past & alive),
    exp(sums, resets == 0)[..., None],
    exp(last - sums, resets == last_resets)[..., None],
    exp(last, last_resets == 0)[..., None],
  )


def decay_power(log_decay: Array, steps: Array) -> Array:
  """exp(log_decay * steps), and 0 for less than no steps.

  Args:
    log_decay: scalar, or of the shape of `steps`; finite, at most 0.
    steps: int32.
  """
  wide = jnp.maximum(steps, 0).astype(log_decay.dtype)
  weight = jnp.exp(wide * log_decay)
  return jnp.where(steps >= 0, weight, jnp.zeros_like(weight))


def constant_decay_weights(log_decay: Array, chunk: int, valid: Array | int) -> DecayWeights:
  """`decay_weights` of a tile, [C, C], [C, 1], [C, 1], [1, 1], with one decay for all its steps.

  Args:
    log_decay: [1, 1] finite, at most 0.
    chunk: C.
    valid: steps of the tile that exist; those at or past it weigh nothing in the state after it.
  """
  dtype = log_decay.dtype
  row = jax.lax.broadcasted_iota(jnp.int32, (chunk, chunk), 0)
  column = jax.lax.broadcasted_iota(jnp.int32, (chunk, chunk), 1)
  step = jax.lax.broadcasted_iota(jnp.int32, (chunk, 1), 0)
  power = lambda steps: decay_power(jnp.broadcast_to(log_decay, steps.shape), steps)
  whole = jnp.exp(log_decay * jnp.asarray(valid, jnp.int32).astype(dtype))
  return DecayWeights(power(row - column), power(step + 1), power(valid - 1 - step), whole)


def decay_output(q: Array, k: Array, v: Array, state: Array, weights: DecayWeights, dot) -> Array:
  """What the queries of a tile read: (q k^T * within) v + since * (q state), [.., C, E].

  Args:
    q: [.., C, D].
    k: [.., C, D].
    v: [.., C, E].
    state: [.., D, E] before the tile.
    weights: of the tile.
    dot: `dot(a, b, axis_a, axis_b)`, product of batched matrices that contracts these axes (-1 or
      -2) and accumulates in the dtype of the weights.
  """
  inside = dot(q, k, -1, -1) * weights.within
  return dot(inside, v, -1, -2) + dot(q, state, -1, -2) * weights.since


def decay_keys(k: Array, v: Array, weights: DecayWeights, dot) -> Array:
  """What a tile adds to the state: (k * until)^T v, [.., D, E]; see `decay_output`.

  The state after the tile is whole * (state before) + decay_keys(k, v).
  """
  return dot(k.astype(weights.until.dtype) * weights.until, v, -2, -2)
