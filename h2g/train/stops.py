"""The ways in which a run ends before its last step, and the exit statuses that tell them apart."""

import contextlib
import signal
import threading

FAILED = 2  # the input, the directory or the disk cannot be used
DIVERGED = 3
PREEMPTED = 75  # SIGTERM: EX_TEMPFAIL of sysexits.h, "try again later"
LOST = 76  # another process of the job is gone
HUNG = 77  # nothing happened for longer than config.train.watchdog
INTERRUPTED = 130  # Ctrl-C, as shells have it


class Diverged(RuntimeError):
  """A loss, gradient or metric stopped being a number, or is a spike that nothing may pass over."""


class Preempted(RuntimeError):
  """The run was told to stop and has saved; the same command goes on from there."""

  def __init__(self, message: str, status: int):
    super().__init__(message)
    self.status = status


class Interruption(contextlib.AbstractContextManager):
  """While open, SIGTERM and Ctrl-C ask the run to save and stop; a second Ctrl-C stops at once.

  received: the signal that came, or None.
  """

  def __init__(self):
    self.received: signal.Signals | None = None
    self._previous: dict[signal.Signals, object] = {}

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
      for number in (signal.SIGTERM, signal.SIGINT):
        self._previous[number] = signal.signal(number, self._receive)
    return self

  def __exit__(self, *_):
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    self._previous.clear()

  def preempted(self, message: str) -> Preempted:
    """The exception that ends the run."""
    status = INTERRUPTED if self.received is signal.SIGINT else PREEMPTED
    name = self.received.name if self.received else "another process was told to stop"
    return Preempted(f"{name}: {message}; run the same command to go on", status)

  def _receive(self, number, _):
    if self.received is not None and number == signal.SIGINT:
      raise KeyboardInterrupt
    self.received = signal.Signals(number)


class EarlyStop(contextlib.AbstractContextManager):
  """While open, SIGTERM ends the process at once: before training there is nothing to save."""

  def __enter__(self):
    self._previous = None
    if threading.current_thread() is threading.main_thread():
      self._previous = signal.signal(signal.SIGTERM, self._receive)
    return self

  def __exit__(self, *_):
    if self._previous is not None:
      signal.signal(signal.SIGTERM, self._previous)

  def _receive(self, number, _):
    raise Preempted("SIGTERM: stopped before training; run the same command to go on", PREEMPTED)
