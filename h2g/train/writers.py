"""What a run says while it goes: metrics.jsonl, TensorBoard events, a progress bar or log lines."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from h2g.train.workdir import write_whole

Row = dict[str, Any]  # {"step", "seeds", "seconds", metric: one number per seed}


class MetricsLog:
  """metrics.jsonl, one row per logged step of a group of seeds, and the same means for TensorBoard.

  A row is {"step": int, "seeds": [S], "seconds": float, <metric>: [S floats]}.
  """

  def __init__(self, workdir: Path, seeds: tuple[int, ...], *, from_step: int):
    """Opens the log of one group; its rows after `from_step`, of a run that was cut, go."""
    from tensorboardX import SummaryWriter

    self._path = workdir / "metrics.jsonl"
    self._seeds = list(seeds)
    _keep_rows(self._path, self._seeds, from_step)
    self._file = open(self._path, "ab")
    name = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]}-{seeds[-1]}"
    self._events = SummaryWriter(
        str(workdir / "events" / f"seeds_{name}"), purge_step=from_step + 1, flush_secs=10
    )

  def write(self, row: Row) -> None:
    """Appends {"step", "seconds", metrics [S]}, whole or not at all."""
    row = {"step": row["step"], "seeds": self._seeds, **row}
    end = self._file.tell()
    try:
      self._file.write(json.dumps(row).encode() + b"\n")
      self._file.flush()
    except OSError:
      os.truncate(self._path, end)
      raise
    for name, values in row.items():
      if name not in ("step", "seeds", "seconds"):
        self._events.add_scalar(name, float(np.mean(values)), row["step"])

  def flush(self) -> None:
    """Called before a checkpoint: it must never know more steps than the log."""
    os.fsync(self._file.fileno())

  def close(self) -> None:
    self._file.close()
    self._events.close()


def read_rows(path: Path) -> list[Row]:
  """The rows of metrics.jsonl; a line that a killed process left unfinished is passed over."""
  rows = []
  if path.exists():
    for line in path.read_bytes().splitlines():
      try:
        rows.append(json.loads(line))
      except ValueError:
        continue
  return rows


def _keep_rows(path: Path, seeds: list[int], step: int) -> None:
  if not path.exists():
    return
  kept = [row for row in read_rows(path) if row["seeds"] != seeds or row["step"] <= step]
  write_whole(path, b"".join(json.dumps(row).encode() + b"\n" for row in kept))


class Progress:
  """A bar with loss, metric and time left where a person looks on; otherwise a line now and then."""

  EVERY_S = 10.0  # seconds between lines

  def __init__(self, label: str, metric: str, *, start: int, steps: int, bar: bool):
    self._label, self._names, self._start, self._steps = label, ("loss", metric), start, steps
    self._began = time.monotonic()
    self._said = self._began - self.EVERY_S + 2.0  # the first line soon: a log should show life
    self._shown: dict[str, str] = {}
    self._bar = None
    if bar and sys.stderr.isatty():
      from tqdm import tqdm

      self._bar = tqdm(total=steps, initial=start, desc=label, unit="step", dynamic_ncols=True)

  def update(self, step: int, row: Row) -> None:
    """Shows that `step` is done; `row` is the last one written, {} if none was."""
    self._shown |= {name: f"{np.mean(row[name]):.4f}" for name in self._names if name in row}
    if self._bar is not None:
      self._bar.set_postfix(self._shown, refresh=False)
      self._bar.update(step - self._bar.n)
      return
    now = time.monotonic()
    if now - self._said < self.EVERY_S and step < self._steps:
      return
    self._said = now
    left = (now - self._began) * (self._steps - step) / max(step - self._start, 1)
    text = "  ".join(f"{name} {value}" for name, value in self._shown.items())
    say(f"{self._label}: step {step}/{self._steps}  {text}  {now - self._began:.1f} s, {left:.0f} s left")

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()


def say(text: str) -> None:
  """One line for the person; flushed, because logs of killed jobs are read too."""
  print(text, flush=True)
