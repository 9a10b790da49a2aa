"""What an implementation of decode attention receives.

An implementation is a function `decode_attention(operands, spec) -> (out, lse)` with out [B, H, E]
in q's dtype and lse [B, H] in the accumulator's. It serves the call exactly or raises
NotImplementedError; arguments were checked by `api.py`. Rows at or past the lengths, and rows no id
names, may hold anything, NaN included, and must have no effect.
"""

import dataclasses
from typing import NamedTuple

from jax import Array
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Spec:
  """The static half of a call (hashable).

  Attributes:
    scale: multiplies q.k.
    softcap: logits become softcap * tanh(logits / softcap); None leaves them.
  """

  scale: float
  softcap: float | None = None


class Operands(NamedTuple):
  """The arrays of a call.

  Attributes:
    q: [B, H, D].
    k: [B, K, C, D].
    v: [B, K, C, E].
    lengths: [B, K] int32 rows (or ids) that count.
    ids: [B, K, n] int32 rows to read, each of the first `lengths` of them a row number; or None
      for the first rows.
    sinks: [H] or None.
  """

  q: Array
  k: Array
  v: Array
  lengths: Array
  ids: Array | None = None
  sinks: Array | None = None


def capped(logits: Array, softcap: float | None) -> Array:
  return logits if softcap is None else softcap * jnp.tanh(logits / softcap)
