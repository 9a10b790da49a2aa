"""The ways in which a run ends before its last step."""

import contextlib
import signal
import threading

PREEMPTED = 75  # exit status after a saved SIGTERM: EX_TEMPFAIL of sysexits.h, "try again later"
DIVERGED = 3


class Diverged(RuntimeError):
  """A loss, gradient or metric stopped being a number."""

  status = DIVERGED


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

  @property
  def status(self) -> int:
    return 130 if self.received is signal.SIGINT else PREEMPTED

  def _receive(self, number, _):
    if self.received is not None and number == signal.SIGINT:
      raise KeyboardInterrupt
    self.received = signal.Signals(number)
