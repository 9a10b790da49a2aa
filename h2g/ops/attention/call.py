"""What an implementation of attention receives and returns, and the steps they all share.

An implementation is a function `attention(operands, spec) -> AttentionOut`. It serves the call
exactly or raises NotImplementedError; arguments were checked by `api.py`, and rows of q, k, v that
the mask excludes altogether are zero by then, so poisoned padding cannot leak through 0 * NaN.
"""

from collections.abc import Callable
import dataclasses
from typing import Any
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp

from h2g.ops.masks import Mask
from h2g.ops.masks import Tile


class Indices(NamedTuple):
  """Where each logit of a tile stands: int32 arrays that broadcast against the logits.

  Attributes:
    batch: batch entry.
    head: query head.
    query: position of the query.
    key: position of the key.
  """

  batch: Array
  head: Array
  query: Array
  key: Array


class TopKeys(NamedTuple):
  """The keys with the largest weights, per query, largest first.

  Attributes:
    values: [B, H, T, n] float32 weights; 0 where the query attends to fewer than n keys. No
      gradient.
    ids: [B, H, T, n] int32 positions of the keys; -1 where the query attends to fewer than n keys.
  """

  values: Array
  ids: Array


class AttentionOut(NamedTuple):
  """The output, and the statistics that were asked for (None otherwise), in float32.

  Attributes:
    out: [B, T, H, E] in q's dtype.
    lse: [B, H, T] logarithm of the sum of exp(logits), sink included; -inf where nothing is
      attended.
    column_mass: [B, H, S] sum over queries of the weights on each key, before dropout.
    entropy: [B, H, T] -sum_s w_s log w_s over keys, in nats, before dropout; 0 where nothing is
      attended.
    top_keys: TopKeys.
  """

  out: Array
  lse: Array | None = None
  column_mass: Array | None = None
  entropy: Array | None = None
  top_keys: TopKeys | None = None


@dataclasses.dataclass(frozen=True)
class Spec:
  """The static half of a call (hashable).

  Attributes:
    scale: multiplies q.k.
    softcap: logits become softcap * tanh(logits / softcap); None leaves them.
    logits_fn: `(logits, Indices, *logits_args) -> logits`, elementwise; None leaves them.
    dropout_rate: share of weights that is dropped, in [0, 1).
    lse: return the log-sum-exp.
    column_mass: return the column mass.
    entropy: return the entropy.
    top_keys: how many top keys to return per query; 0 for none.
  """

  scale: float
  softcap: float | None = None
  logits_fn: Callable[..., Array] | None = None
  dropout_rate: float = 0.0
  lse: bool = False
  column_mass: bool = False
  entropy: bool = False
  top_keys: int = 0

  @property
  def statistics(self) -> bool:
    """Whether anything beyond out and lse is wanted, which takes a second pass over the logits."""
    return self.column_mass or self.entropy or self.top_keys > 0


class Operands(NamedTuple):
  """The arrays of a call.

  Attributes:
    q: [B, T, H, D].
    k: [B, S, K, D].
    v: [B, S, K, E].
    bias: [B|1, H|1, T|1, S|1] or None.
    mask: Mask or None.
    sinks: [H] or None.
    logits_args: pytree of arrays, further arguments of `spec.logits_fn`.
    seed: [2] uint32, present when dropout_rate > 0.
    origin: [2] int32, global numbers of batch entry 0 and head 0 (not 0 in a shard), or None for
      (0, 0).
  """

  q: Array
  k: Array
  v: Array
  bias: Array | None = None
  mask: Mask | None = None
  sinks: Array | None = None
  logits_args: tuple[Any, ...] = ()
  seed: Array | None = None
  origin: Array | None = None


def globally(tile: Tile, origin: Array | None) -> Indices:
  """The tile's indices with global batch and head numbers, in the order hooks receive them."""
  if origin is None:
    return Indices(tile.batch, tile.head, tile.query, tile.key)
  shift = lambda x, o: x + jnp.reshape(o, (1,) * x.ndim)
  return Indices(shift(tile.batch, origin[0]), shift(tile.head, origin[1]), tile.query, tile.key)


def adjust(logits: Array, bias, logits_args, spec: Spec, tile: Tile, origin, allowed=None) -> Array:
  """From scale * q.k to the logits of the softmax: bias, soft cap, hook, in this order.

  Args:
    logits: [.., queries, keys] scaled products, one tile.
    bias: the bias of this tile, or None.
    logits_args: arguments of the hook.
    spec: of the call.
    tile: indices of this tile.
    origin: as in Operands.
    allowed: where the mask attends, or None for everywhere. Elsewhere the value is unspecified but
      its gradient is finite, whatever bias stands there.
  """
  if bias is not None:
    logits = logits + bias.astype(logits.dtype)
  if spec.softcap is None and spec.logits_fn is None:
    return logits
  if allowed is not None:
    logits = jnp.where(allowed, logits, jnp.zeros_like(logits))
  if spec.softcap is not None:
    logits = spec.softcap * jnp.tanh(logits / spec.softcap)
  if spec.logits_fn is not None:
    shape, dtype = logits.shape, logits.dtype
    logits = spec.logits_fn(logits, globally(tile, origin), *logits_args)
    if not hasattr(logits, "shape") or logits.shape != shape:
      found = getattr(logits, "shape", type(logits).__name__)
      raise ValueError(
        f"logits_fn must return logits of shape {shape}, as it received: got {found}"
      )
    logits = logits.astype(dtype)
  return logits


def elementwise(fn: Callable[..., Array]) -> Callable[..., Array]:
  """`fn(logit, batch, head, query, key, *args)` over scalars as a hook over tiles, by vmap.

  Axes along which an index does not vary are not mapped over it, so `slopes[head]` reads one
  scalar per head.
  """

  def hook(logits, indices, *args):
    shape = logits.shape
    arrays = [logits, *indices]
    f = fn
    for axis in reversed(range(len(shape))):
      if shape[axis] > 1:
        f = jax.vmap(
          f, in_axes=tuple(0 if x.shape[axis] > 1 else None for x in arrays) + (None,) * len(args)
        )
    squeezed = [jnp.reshape(x, [n for n in x.shape if n > 1]) for x in arrays]
    return jnp.reshape(f(*squeezed, *args), shape)

  return hook
