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

import dataclasses
from typing import Any


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
