"""Compiled programs kept between runs, in a folder that survives kills and unlike machines."""

import contextlib
import hashlib
import os
from pathlib import Path
import platform
import time
import warnings
import zlib

import jax
from jax.experimental.compilation_cache import compilation_cache

_ours: str | None = None  # the folder that this module turned on


def enable_compilation_cache(where: str) -> None:
  """Turns on JAX's persistent cache; a cache that the user has set up already is left alone.

  Args:
    where: a folder; "auto": $XDG_CACHE_HOME/h2g or ~/.cache/h2g; "": no cache, nor that of an
      earlier run in this process.
  """
  global _ours
  if jax.config.jax_compilation_cache_dir != _ours:
    return
  if not where:
    if _ours:
      _ours = None
      jax.config.update("jax_compilation_cache_dir", None)
      compilation_cache.reset_cache()
    return
  if _ours:
    return
  if where == "auto":
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    # Home directories are shared by unlike machines: a program of one must not reach another.
    where = os.path.join(home, "h2g", f"{platform.machine()}-{_processor()}")
  folder = Path(where).absolute()
  try:
    folder.mkdir(parents=True, exist_ok=True)
    _drop_damaged(folder)
  except OSError:
    return  # no home, or a full one: programs are compiled anew
  # Likewise later: a cache that cannot be read or written costs time, not the run.
  warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
  _ours = str(folder)
  jax.config.update("jax_compilation_cache_dir", _ours)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
  compilation_cache.reset_cache()  # JAX looks for the folder once, at its first compilation


def _drop_damaged(folder: Path) -> None:
  """Removes entries that a killed process left half-written: JAX does not read or replace them.

  Only entries newer than the last check are read.
  """
  stamp = folder / "checked"
  checked = stamp.stat().st_mtime if stamp.exists() else 0.0
  now = time.time() - 1.0  # file times come from a coarser clock
  for entry in folder.glob("*-cache"):
    with contextlib.suppress(FileNotFoundError):  # another process drops it too
      if entry.stat().st_mtime >= checked and not _is_whole(entry.read_bytes()):
        entry.unlink()
  stamp.touch()
  os.utime(stamp, (now, now))


def _is_whole(content: bytes) -> bool:
  if content[:4] == b"\x28\xb5\x2f\xfd":  # zstandard, where it is installed
    try:
      import zstandard
    except ImportError:
      return True
    return _decompresses(zstandard.ZstdDecompressor().decompress, content, zstandard.ZstdError)
  return _decompresses(zlib.decompress, content, zlib.error)


def _decompresses(decompress, content: bytes, error: type[Exception]) -> bool:
  try:
    decompress(content)
  except error:
    return False
  return True


def _processor() -> str:
  """8 hex digits of what this processor can do."""
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    text = "".join(sorted({line for line in lines if line.startswith(("flags", "model name"))}))
  except OSError:
    text = platform.processor()
  return hashlib.sha256(text.encode()).hexdigest()[:8]
