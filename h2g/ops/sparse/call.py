"""What an implementation of block-sparse attention receives.

An implementation is a function `block_sparse_attention(operands, spec) -> (out, lse)` with out
[B, T, H, E] in q's dtype and lse [B, H, T] in the accumulator's. It serves the call exactly or
raises NotImplementedError; arguments were checked by `api.py`, the table is canonical
(`tables.py`), and rows of q, k, v that the mask excludes altogether are zero by then.
"""

import dataclasses
from typing import Any
from typing import NamedTuple

from jax import Array
import jax.numpy as jnp

from h2g.ops.masks import Mask


@dataclasses.dataclass(frozen=True)
class Spec:
  """The static half of a call (hashable).

  Attributes:
    block_q: queries per block.
    block_k: keys per block.
    scale: multiplies q.k.
    softcap: logits become softcap * tanh(logits / softcap); None leaves them.
  """

  block_q: int
  block_k: int
  scale: float
  softcap: float | None = None


class Operands(NamedTuple):
  """The arrays of a call.

  Attributes:
    q: [B, T, H, D].
    k: [B, S, K, D].
    v: [B, S, K, E].
    ids: [B|1, K|1, N, W] int32 key blocks, ascending, without repetitions.
    counts: [B|1, K|1, N] int32 entries that count; ids behind them may be anything.
    mask: Mask or None.
  """

  q: Array
  k: Array
  v: Array
  ids: Any
  counts: Any
  mask: Mask | None = None


def capped(logits: Array, softcap: float | None) -> Array:
  return logits if softcap is None else softcap * jnp.tanh(logits / softcap)
