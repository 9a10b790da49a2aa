"""Mathematics of one tile, written once: XLA loops and kernels call the same functions.

Functions here take and return arrays only, know nothing about memory or grids, and are tested
alone.
"""

from typing import NamedTuple

from jax import Array
import jax.numpy as jnp


class SoftmaxState(NamedTuple):
  """A softmax-weighted sum in progress (arXiv 1805.02867 alg. 3, arXiv 2205.14135 alg. 1).

  Attributes:
    acc: [.., queries, E] sum of exp(logits - largest) v so far.
    largest: [.., queries] largest logit so far; -inf before the first.
    total: [.., queries] sum of exp(logits - largest) so far.
  """

  acc: Array
  largest: Array
  total: Array


def softmax_init(shape: tuple[int, ...], width: int, dtype=jnp.float32) -> SoftmaxState:
  """Nothing seen yet: `shape` is [.., queries], `width` is E."""
  return SoftmaxState(
    jnp.zeros((*shape, width), dtype), jnp.full(shape, -jnp.inf, dtype), jnp.zeros(shape, dtype)
  )


def finite_or_zero(x: Array) -> Array:
  """-inf (no logit seen) becomes 0, so that exp(-inf - x) is 0 and not NaN."""
  return jnp.where(x == -jnp.inf, jnp.zeros_like(x), x)


def softmax_step(state: SoftmaxState | None, logits: Array, weigh) -> SoftmaxState:
  """Adds one tile of logits.

  Args:
    state: so far; None where this is the first tile.
    logits: [.., queries, keys]; -inf where masked.
    weigh: function from exp(logits - largest) [.., queries, keys] to its product with v [..,
      queries, E]; dropout goes in there, since it must not touch `total`.
  """
  largest = logits.max(-1)
  if state is not None:
    largest = jnp.maximum(state.largest, largest)
  safe = finite_or_zero(largest)
  exps = jnp.exp(logits - safe[..., None])
  if state is None:
    return SoftmaxState(weigh(exps), largest, exps.sum(-1))
  decay = jnp.exp(state.largest - safe)
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
    sink = jnp.broadcast_to(sink, largest.shape)
    joint = jnp.maximum(largest, sink)
    safe = finite_or_zero(joint)
    decay = jnp.exp(largest - safe)
    total = total * decay + jnp.exp(sink - safe)
    acc, largest = acc * decay[..., None], joint
  seen = total > 0
  divisor = jnp.where(seen, total, jnp.ones_like(total))
  lse = jnp.where(seen, jnp.log(divisor) + finite_or_zero(largest), -jnp.inf)
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
