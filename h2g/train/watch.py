"""Where the time of a run goes, and the end of a process in which nothing happens any more."""

from collections.abc import Iterator
import contextlib
import faulthandler
import sys
import threading
import time

from h2g.train import processes
from h2g.train.stops import HUNG

PHASES = ("data", "compute", "compile", "evaluate", "checkpoint")


class Watch(contextlib.AbstractContextManager):
  """Adds up the seconds of each phase; while open, ends the process where none begins for long.

  seconds: {phase: seconds so far}.
  """

  def __init__(self, limit: float = 0.0):
    """limit: seconds in one phase after which the process is taken to hang; 0 waits for ever."""
    self.seconds = dict.fromkeys(PHASES, 0.0)
    self._limit = limit
    self._what = "starting"
    self._waited = 0.0
    self._closed = threading.Event()
    self._thread: threading.Thread | None = None

  def __enter__(self):
    if self._limit:
      self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
      self._thread.start()
    return self

  def __exit__(self, *_):
    self._closed.set()
    if self._thread is not None:
      self._thread.join()

  def alive(self, what: str) -> None:
    """A sign of life; `what` begins."""
    self._what, self._waited = what, 0.0

  @contextlib.contextmanager
  def phase(self, name: str, what: str) -> Iterator[None]:
    """`what` begins, and counts as a phase of PHASES until the block ends."""
    self.alive(what)
    began = time.monotonic()
    try:
      yield
    finally:
      self.seconds[name] += time.monotonic() - began
      self.alive(f"what follows {what}")

  def move(self, source: str, target: str, seconds: float) -> None:
    """What was counted as one phase turns out to be another."""
    self.seconds[source] -= seconds
    self.seconds[target] += seconds

  def _look(self) -> None:
    # Ticks are counted, not the clock: a process that was stopped and goes on has not hung.
    tick = min(1.0, self._limit / 10)
    while not self._closed.wait(tick):
      self._waited += tick
      if self._waited >= self._limit:
        print(
          f"error: no sign of life for {self._limit:g} s in {self._what}: this process or another "
          "of the job hangs (config.train.watchdog says how long to wait; below is where it "
          "stands); run the same command to go on from the last checkpoint",
          file=sys.stderr,
          flush=True,
        )
        faulthandler.dump_traceback(file=sys.__stderr__)
        processes.leave(HUNG)
