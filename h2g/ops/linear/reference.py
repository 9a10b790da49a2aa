"""The definition of decay attention: the recurrence, one step at a time, float32 (or float64).

Every other implementation is tested against this one, outputs and gradients. O(T D E) memory under
differentiation.
"""

import jax
from jax import Array
import jax.numpy as jnp

from h2g.ops.linear.call import Spec


def step(q: Array, k: Array, v: Array, decay: Array, state: Array) -> tuple[Array, Array]:
  """One step, unscaled: S' = lambda S + k v^T, o = q S'.

  Args:
    q: [B, H, D].
    k: [B, H, D].
    v: [B, H, E].
    decay: [B|1, H] log lambda.
    state: [B, H, D, E] S.
  Returns:
    (o [B, H, E], S').
  """
  state = jnp.exp(decay)[..., None, None] * state + k[..., :, None] * v[..., None, :]
  return jnp.einsum("bhd,bhde->bhe", q, state, precision="highest"), state


def decay_attention(q, k, v, decay, state, spec: Spec) -> tuple[Array, Array]:
  """See `h2g.ops.linear.decay_attention`."""
  heads, dtype = q.shape[2], state.dtype
  by_step = lambda x: jnp.moveaxis(x.astype(dtype), 1, 0)
  if decay is None:
    decay = jnp.zeros((heads,), dtype)
  if decay.ndim == 1:
    decay = jnp.broadcast_to(decay, (1, q.shape[1], heads))

  def body(state, x):
    out, state = step(*x, state)
    return state, out

  state, out = jax.lax.scan(body, state, tuple(by_step(x) for x in (q, k, v, decay)))
  return (jnp.moveaxis(out, 0, 1) * spec.scale).astype(spec.out_dtype), state
