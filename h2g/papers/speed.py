"""How long calls take beside one another, and how much memory one takes."""

from collections.abc import Callable
from collections.abc import Sequence
import time

import jax
import numpy as np


def in_turns(calls: Sequence[Callable[[], object]], rounds: int = 15) -> list[float]:
  """Median seconds of each call, taken in turns, so that a busy machine slows all alike.

  Each is called twice before: to compile, and to be warm.
  """
  taken = np.empty((rounds + 2, len(calls)))
  for times in taken:
    for at, call in enumerate(calls):
      start = time.perf_counter()
      jax.block_until_ready(call())
      times[at] = time.perf_counter() - start
  return np.median(taken[2:], axis=0).tolist()


def temporaries(call: Callable, *arguments) -> int:
  """Bytes of temporaries of a call, as compiled for these arguments (arrays or their shapes)."""
  return jax.jit(call).lower(*arguments).compile().memory_analysis().temp_size_in_bytes
