"""What an implementation of decay attention receives.

An implementation is a function

  decay_attention(q, k, v, decay, state, spec) -> (out, state)

  q: [B, T, H, D], T >= 1. k: [B, T, H, D]. v: [B, T, H, E], one dtype (heads already repeated).
  decay: None, or [H] or [B, T, H] log decays in the accumulator's dtype.
  state: [B, H, D, E] in the accumulator's dtype.
  out: [B, T, H, E] in `spec.out_dtype`. The state that comes back is that after step T.

It serves the call exactly or raises NotImplementedError; arguments were checked by `api.py`, and
what stands in padding is zero by then (with log decay 0).
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Spec:
  """The static half of a call (hashable).

  Attributes:
    scale: multiplies the output.
    chunk_size: steps per chunk; None lets the implementation choose.
    out_dtype: of the output.
  """

  scale: float
  chunk_size: int | None
  out_dtype: Any


def from_passes(forward: Callable, backward: Callable) -> Callable:
  """attend(plan, q, k, v, decay, state) -> (out, state) with a gradient, for a kernel.

  Args:
    forward: of the same arguments; `plan` is static.
    backward: of them, then the cotangents of out and state and whether the decay's is asked for;
      (dq, dk, dv, d_decay, d_state).
  """

  @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
  def attend(plan, q, k, v, decay, state):
    return forward(plan, q, k, v, decay, state)

  def attend_forward(plan, q, k, v, decay, state):
    arrays = tuple(x.value for x in (q, k, v, decay, state))
    # An array in place of a flag: residuals are arrays, and its shape is static.
    mark = jnp.zeros((int(decay.perturbed),), jnp.float32)
    return forward(plan, *arrays), (*arrays, mark)

  def attend_backward(plan, saved, cotangents):
    *arrays, mark = saved
    zeros = jax.custom_derivatives.SymbolicZero
    full = lambda x: jnp.zeros(x.aval.shape, x.aval.dtype) if isinstance(x, zeros) else x
    return backward(plan, *arrays, *map(full, cotangents), mark.shape[0] == 1)

  attend.defvjp(attend_forward, attend_backward, symbolic_zeros=True)
  return attend
