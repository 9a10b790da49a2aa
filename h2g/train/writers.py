"""What a run says while it goes: metrics.jsonl, TensorBoard, Weights & Biases, a bar or lines."""

import contextlib
import hashlib
import importlib.util
import json
import math
import os
from pathlib import Path
import socket
import sys
import time
from typing import Any
from typing import Protocol

import jax
import numpy as np

from h2g.errors import InputError
from h2g.train.workdir import write_whole

Row = dict[str, Any]  # {"step", "seeds", "seconds", metric: one number per seed}


class Writer(Protocol):
  """Where rows of metrics go, besides metrics.jsonl."""

  def write(self, row: Row) -> None: ...

  def flush(self) -> None: ...

  def close(self) -> None: ...


class MetricsLog:
  """metrics.jsonl, one row per logged step of a group of seeds, and their means for other writers.

  A row is {"step": int, "seeds": [S], "seconds": float, <metric>: [S floats]}, null for what is not
  a number. Only the first process of a job writes.
  """

  def __init__(
    self,
    workdir: Path,
    seeds: tuple[int, ...],
    *,
    from_step: int,
    wandb: str = "",
    config: dict | None = None,
  ):
    """Opens the log of one group; its rows after `from_step`, of a run that was cut, go.

    wandb: see `Settings`; config: what it is told of the run.
    """
    self._path = workdir / "metrics.jsonl"
    self._seeds = list(seeds)
    self._file = None
    self._writers: list[Writer] = []
    if is_first_process():
      project = _project(wandb)  # refuses before anything is opened
      _keep_rows(self._path, self._seeds, from_step)
      self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 (closed by `close`)
      name = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]}-{seeds[-1]}"
      self._writers.append(_Events(workdir / "events" / f"seeds_{name}", from_step))
      if project:
        self._writers.append(_WeightsAndBiases(project, workdir, name, config or {}))

  def write(self, row: Row) -> None:
    """Appends {"step", "seconds", metrics [S]}, whole or not at all."""
    if self._file is None:
      return
    row = {"step": row["step"], "seeds": self._seeds, **row}
    row = {name: _strict(value) for name, value in row.items()}
    line = memoryview(json.dumps(row, allow_nan=False).encode() + b"\n")
    end = os.path.getsize(self._path)
    try:
      while line:
        line = line[self._file.write(line) :]  # a nearly full disk takes a part and then refuses
    except OSError:
      os.truncate(self._path, end)
      raise
    for writer in self._writers:
      writer.write(row)

  def flush(self) -> None:
    """Called before a checkpoint: it must never know more steps than the log."""
    if self._file is not None:
      os.fsync(self._file.fileno())
      for writer in self._writers:
        writer.flush()

  def close(self) -> None:
    if self._file is not None:
      self._file.close()
      for writer in self._writers:
        with contextlib.suppress(OSError):  # a full disk, which has been told already
          writer.close()


def _strict(value):
  """The value without what JSON has no word for."""
  if isinstance(value, list):
    return [_strict(one) for one in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def means(row: Row) -> dict[str, float]:
  """{metric: mean over the seeds that have one}."""
  found = {}
  for name, values in row.items():
    if name not in ("step", "seeds", "seconds"):
      numbers = [value for value in values if value is not None]
      if numbers:
        found[name] = float(np.mean(numbers))
  return found


def _project(wandb: str) -> str:
  """The project to log to, "" for none; InputError where it is asked for and cannot be."""
  # A folder of that name, such as its own logs, is not the package.
  installed = "wandb" in sys.modules or getattr(importlib.util.find_spec("wandb"), "origin", None)
  if wandb != "auto":
    if wandb and not installed:
      raise InputError(
        f"config.train.wandb={wandb!r}: the package wandb is not installed: pip install wandb, or "
        'use ""'
      )
    return wandb
  # Without an account it would ask for one, and a job has nobody to answer.
  known = any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_MODE"))
  with contextlib.suppress(OSError):
    known = known or "api.wandb.ai" in (Path.home() / ".netrc").read_text()
  return "h2g" if installed and known else ""


class _WeightsAndBiases:
  """One run of Weights & Biases per group; a run that goes on goes on there too.

  What goes wrong with the service is told once and costs the run nothing.
  """

  def __init__(self, project: str, workdir: Path, name: str, config: dict):
    self._run = None
    identity = hashlib.sha256(f"{workdir.absolute()} {name}".encode()).hexdigest()[:16]
    with self._told():
      import wandb

      self._run = wandb.init(
        project=project,
        name=f"{workdir.name} {name}",
        id=identity,
        resume="allow",
        dir=str(workdir),
        config=config,
      )

  def write(self, row: Row) -> None:
    if self._run is not None:
      with self._told():
        self._run.log(means(row), step=row["step"])

  def flush(self) -> None:
    pass  # it sends by itself

  def close(self) -> None:
    if self._run is not None:
      with self._told():
        self._run.finish()

  @contextlib.contextmanager
  def _told(self):
    try:
      yield
    except Exception as error:
      self._run = None
      reason = " ".join(str(error).split())[:160]
      say(f"warning: Weights & Biases is left out from here ({type(error).__name__}: {reason})")


@contextlib.contextmanager
def _hidden(name: str):
  """A package that is not loaded yet looks as if it were not installed."""
  hide = name not in sys.modules
  if hide:
    sys.modules[name] = None
  try:
    yield
  finally:
    if hide:
      del sys.modules[name]


class _Events:
  """TensorBoard's file of events, written in the caller's thread so that a full disk is noticed."""

  def __init__(self, folder: Path, from_step: int):
    with _hidden("torch"):  # tensorboardX loads it where it is installed: two seconds for nothing
      from tensorboardX.proto import event_pb2
      from tensorboardX.proto import summary_pb2
      from tensorboardX.record_writer import RecordWriter

    self._event, self._summary = event_pb2.Event, summary_pb2.Summary
    folder.mkdir(parents=True, exist_ok=True)
    name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
    self._writer = RecordWriter(str(folder / name))
    self._add(file_version="brain.Event:2")
    # TensorBoard drops what an earlier file says of later steps.
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._add(step=from_step + 1, session_log=start)

  def write(self, row: Row) -> None:
    for name, mean in means(row).items():
      summary = self._summary(value=[self._summary.Value(tag=name, simple_value=mean)])
      self._add(step=row["step"], summary=summary)

  def _add(self, **fields) -> None:
    event = self._event(wall_time=time.time(), **fields)
    self._writer.write(event.SerializeToString())

  def flush(self) -> None:
    self._writer.flush()

  def close(self) -> None:
    self._writer.close()


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
  """A bar with loss, metric and time left where a person looks on, else a line now and then."""

  EVERY_S = 10.0  # seconds between lines

  def __init__(self, label: str, metric: str, *, start: int, steps: int, bar: bool):
    self._label, self._names, self._steps = label, ("loss", metric), steps
    self._began = time.monotonic()
    self._first: tuple[int, float] | None = None  # of the first update, which had compiled
    self._said = self._began - self.EVERY_S + 2.0  # the first line soon: a log should show life
    self._shown: dict[str, str] = {}
    self._bar = None
    if bar and sys.stderr.isatty() and is_first_process():
      from tqdm import tqdm

      self._bar = tqdm(total=steps, initial=start, desc=label, unit="step", dynamic_ncols=True)

  def update(self, step: int, row: Row, speed: str = "") -> None:
    """Shows that `step` is done; `row` is the last one written, {} if none was.

    speed: where the time goes, in words.
    """
    found = means({name: row[name] for name in self._names if name in row})
    self._shown |= {name: f"{value:.4f}" for name, value in found.items()}
    if self._bar is not None:
      self._bar.set_postfix(self._shown, refresh=False)
      self._bar.update(step - self._bar.n)
      return
    now = time.monotonic()
    self._first = self._first or (step, now)
    if now - self._said < self.EVERY_S and step < self._steps:
      return
    self._said = now
    passed = f"{now - self._began:.1f} s"
    if step > self._first[0]:
      per_step = (now - self._first[1]) / (step - self._first[0])
      passed += f", {per_step * (self._steps - step):.0f} s left"
    text = "  ".join(f"{name} {value}" for name, value in self._shown.items())
    say(f"{self._label}: step {step}/{self._steps}  {text}  {passed}{speed and f', {speed}'}")

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()


def is_first_process() -> bool:
  """Whether this process writes the job's logs."""
  return jax.process_index() == 0


def say(text: str) -> None:
  """One line for the person; flushed, because logs of killed jobs are read too."""
  if is_first_process():
    print(text, flush=True)
