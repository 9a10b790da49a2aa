"""A trace of a few steps for a profile viewer: `--profile`."""

from pathlib import Path

import jax

from h2g.errors import InputError
from h2g.train.writers import say

AFTER, COUNT = 10, 10  # steps before a trace that is asked for without saying of which, and in it


class Profile:
  """Records steps first to last of a run into workdir/profile, as an XPlane trace."""

  def __init__(self, which: str | None, workdir: Path):
    """which: "FIRST:LAST", "" for ten steps once a few are done, None for no trace."""
    self._which, self._folder = which, workdir / "profile"
    self._range = parse(which) if which else None
    self._on = False

  def start(self, step: int, steps: int) -> None:
    """Says where a group of seeds begins and ends."""
    if self._which == "":
      self._range = (min(step + AFTER + 1, steps), min(step + AFTER + COUNT, steps))
    if self._range and self._range[0] <= step:
      say(f"warning: no trace: step {self._range[0]} is done, this goes on from step {step}")
      self._range = None

  def steps_to_go(self, step: int) -> int | None:
    """Steps until the trace begins or ends; None where it does neither."""
    if not self._range:
      return None
    first, last = self._range
    return (first - 1 if step < first - 1 else last) - step

  def before(self, step: int) -> None:
    """Called before the call that makes step `step` + 1."""
    if self._range and step == self._range[0] - 1:
      jax.profiler.start_trace(str(self._folder))
      self._on = True

  def after(self, step: int, done) -> None:
    """Called after the call that made `step`; `done`: its arrays."""
    if self._on and step == self._range[1]:
      jax.block_until_ready(done)
      first, last = self._range
      self.close()
      say(f"trace of steps {first} to {last} -> {self._folder}")

  def close(self) -> None:
    """Ends a trace that is under way; there will be no other."""
    if self._on:
      jax.profiler.stop_trace()
      self._on, self._range, self._which = False, None, None


def parse(which: str) -> tuple[int, int]:
  """(first, last) of "FIRST:LAST" or "STEP"."""
  first, _, last = which.partition(":")
  try:
    found = int(first), int(last or first)
  except ValueError:
    found = (0, 0)
  if not 1 <= found[0] <= found[1]:
    raise InputError(f"--profile={which} cannot be used: write FIRST:LAST, steps from 1, as in 5:8")
  return found
