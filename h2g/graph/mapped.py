"""Arrays that are maps of files: what was read of them is memory, until it is given back."""

from collections.abc import Iterable
import contextlib
import mmap
from pathlib import Path

import numpy as np

LIMIT = 4 << 30  # bytes of files in the memory of the process
STATM = Path("/proc/self/statm")


class Maps:
  """The maps behind some arrays; empty where all are plain.

  A page fault maps the pages around it as well, so that gathered rows count many times their size
  as resident memory. `trim` gives it back; the kernel keeps what was read in its cache.
  """

  def __init__(self, arrays: Iterable):
    found = [base for base in map(_base, arrays) if base is not None]
    self._maps = list({id(base): base for base in found}.values())

  def trim(self, limit: int = LIMIT) -> bool:
    """Unmaps the pages that were read if they are more than `limit` bytes; whether it did.

    Reading goes on as before, in other threads too. Without the kernel's figures (not on Linux)
    nothing happens.
    """
    if not self._maps or not hasattr(mmap, "MADV_DONTNEED"):
      return False
    try:
      shared = int(STATM.read_text().split()[2]) * mmap.PAGESIZE
    except OSError:
      return False
    if shared <= limit:
      return False
    for base in self._maps:
      with contextlib.suppress(OSError, ValueError):
        base.madvise(mmap.MADV_DONTNEED)
    return True


def _base(array) -> mmap.mmap | None:
  while isinstance(array, np.ndarray):
    array = array.base
  return array if isinstance(array, mmap.mmap) else None
