"""The differentiable call."""

import functools

import jax
from jax import Array
import jax.numpy as jnp

from h2g.ops.flash_gpu.call import Call
from h2g.ops.flash_gpu.call import Config
from h2g.ops.flash_gpu.call import LOG2E
from h2g.ops.flash_gpu.d_bias import d_bias
from h2g.ops.flash_gpu.d_keys import d_keys
from h2g.ops.flash_gpu.d_queries import d_queries
from h2g.ops.flash_gpu.forward import forward
from h2g.ops.flash_gpu.gradient import Saved
from h2g.ops.flash_gpu.logits import is_row
from h2g.ops.flash_gpu.padded import pad_rows
from h2g.ops.flash_gpu.padded import whole_tiles
from h2g.ops.flash_gpu.program import check_program


def flash(call: Call, config: Config) -> tuple[Array, Array]:
  """(out [B, T, H, E] in q's dtype, lse [B, H, T] float32), differentiable in q, k, v, bias, sinks.

  lse is the logarithm of the sum of exp(logits), sink included; -inf where nothing is attended.
  """
  if call.by_query.ids.shape[1] not in (1, call.k.shape[2]) or is_row(call.bias, axis=3):
    # Lists, or sums over queries, for each query head: then each is a key head of its own.
    times = call.q.shape[2] // call.k.shape[2]
    k, v = (jnp.repeat(x, times, axis=2) for x in (call.k, call.v))
    call = call._replace(k=k, v=v)
  call = call._replace(table=None if call.bias is None else jnp.asarray(call.table, jnp.int32))
  check_program(call, config)
  return _flash(call, config)


@functools.partial(jax.jit, static_argnums=1)
@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _flash(call: Call, config: Config) -> tuple[Array, Array]:
  return _one_by_one(forward, config)(call)


def _one_by_one(function, config: Config):
  """Under vmap a kernel runs once per entry."""
  return jax.custom_batching.sequential_vmap(lambda *arrays: function(*arrays, config))


def _flash_forward(call: Call, config: Config):
  out, lse = _one_by_one(forward, config)(call)
  return (out, lse), (call, out, lse)


def _flash_backward(config: Config, residuals, cotangents):
  return (_one_by_one(_gradients, config)(*residuals, *cotangents),)


def _gradients(call: Call, out: Array, lse: Array, d_out: Array, d_lse: Array, config: Config):
  """With p the weights, delta = do.out - dlse: dx = p (do.v - delta), dsink = -p_sink delta."""
  attends = lse > -jnp.inf
  delta = jnp.einsum("bthe,bthe->bht", d_out.astype(jnp.float32), out.astype(jnp.float32))
  delta = delta - jnp.where(attends, d_lse, 0.0)
  length = whole_tiles(call.q.shape[1], config.tile_q)
  rows = lambda x, value: jnp.pad(
    x, ((0, 0), (0, 0), (0, length - x.shape[2])), constant_values=value
  )
  safe = jnp.where(attends, lse * LOG2E, jnp.inf)
  saved = Saved(pad_rows(d_out, length), rows(safe, jnp.inf), rows(delta, 0.0))

  dq, row_sums = d_queries(call, config, saved)
  dk, dv, column_sums = d_keys(call, config, saved)
  cut = lambda x, like: x[:, : like.shape[1], :, : like.shape[3]]
  of_bias = None
  if call.bias is not None:
    num_queries, num_keys = call.q.shape[1], call.k.shape[1]
    if row_sums is not None:
      of_bias = row_sums[:, :, :num_queries, None]
    elif column_sums is not None:
      of_bias = column_sums[:, :, None, :num_keys]
    else:
      of_bias = d_bias(call, config, saved)[:, :, :num_queries, :num_keys]
    shared = [i for i, n in enumerate(call.bias.shape) if n == 1 and of_bias.shape[i] > 1]
    of_bias = of_bias.sum(shared, keepdims=True).astype(call.bias.dtype)
  d_sinks = None
  if call.sinks is not None:
    sinks = call.sinks.astype(jnp.float32)[None, :, None]
    p_sink = jnp.where(attends, jnp.exp(sinks - jnp.where(attends, lse, 0.0)), 0.0)
    d_sinks = -(p_sink * delta).sum((0, 2)).astype(call.sinks.dtype)
  nothing = (None,) * 5
  return Call(cut(dq, call.q), cut(dk, call.k), cut(dv, call.v), of_bias, d_sinks, *nothing)


_flash.__wrapped__.defvjp(_flash_forward, _flash_backward)
