"""Runs of a benchmark, each a process of its own: what one does to itself, it does alone."""

from collections.abc import Callable
import concurrent.futures
import json
import os
from pathlib import Path
import subprocess
import sys

from tqdm import tqdm

from h2g.benchmark.grid import Cell

PREEMPTED = (75, 130)  # of `h2g.train`: told to stop and saved
RESULTS = "results.json"
FAILURE = "failure.json"


def run(
  todo: list[Cell],
  workdir: Path,
  *,
  config: Path,
  seeds: int,
  overrides: tuple[str, ...] = (),
  jobs: int = 1,
  minutes: float = 0,
  done: Callable[[], None] = lambda: None,
) -> None:
  """Runs the cells; one that is finished already says so in half a second.

  A cell that fails leaves failure.json in its folder, which says why, and is tried again by the
  next call. A cell that was cut goes on from its last checkpoint.

  Args:
    todo: the cells.
    workdir: each cell lives in workdir/<dataset>/<model>.
    config: the config file.
    seeds: seeds of each cell, 0, 1, ...
    overrides: further `--config.key=value` for all.
    jobs: runs at a time. With more than one, their times are not those of a quiet machine.
    minutes: a run that takes longer is stopped and counts as failed; 0 lets it.
    done: called after each cell.
  """
  bar = tqdm(total=len(todo), unit="run", disable=not sys.stderr.isatty())

  def one(cell: Cell) -> None:
    bar.set_description(f"{cell.dataset} {cell.model}")
    options = (f"--config.num_seeds={seeds}", *overrides)
    reason = _train(f"{config}:{cell.variant}", cell.folder(workdir), options, minutes)
    _note(cell.folder(workdir), reason)
    if not sys.stderr.isatty():
      print(f"{cell.dataset} {cell.model}: {reason or 'done'}", file=sys.stderr, flush=True)
    bar.update()

  with bar, concurrent.futures.ThreadPoolExecutor(jobs) as pool:
    running = [pool.submit(one, cell) for cell in todo]
    try:
      for future in concurrent.futures.as_completed(running):
        future.result()
        done()
    except BaseException:
      for future in running:
        future.cancel()
      raise


def _train(config: str, folder: Path, options: tuple[str, ...], minutes: float) -> str | None:
  """Runs one command; None where it finished, or the reason why it did not."""
  folder.mkdir(parents=True, exist_ok=True)
  command = [sys.executable, "-m", "h2g.train", "--noprogress", f"--config={config}"]
  # The caller's import path: a clone that is not installed works as well.
  environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
  with (folder / "log.txt").open("ab") as log:
    begin = log.tell()
    try:
      status = subprocess.run(
        [*command, f"--workdir={folder}", *options],
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=environment,
        timeout=60 * minutes or None,
      ).returncode
    except subprocess.TimeoutExpired:
      return f"took longer than {minutes:g} minutes"
  if status == 0:
    return None
  if status in PREEMPTED:
    raise KeyboardInterrupt
  if status < 0:
    return f"killed by signal {-status}" + (" (out of memory?)" if status == -9 else "")
  said = (folder / "log.txt").read_bytes()[begin:].decode(errors="replace").strip().splitlines()
  return said[-1].removeprefix("error: ") if said else f"exit status {status}"


def _note(folder: Path, reason: str | None) -> None:
  """failure.json, there exactly while the last try failed."""
  path = folder / FAILURE
  if reason is None:
    path.unlink(missing_ok=True)
    return
  part = path.with_suffix(".part")
  part.write_text(json.dumps({"reason": reason}) + "\n", encoding="utf-8")
  part.replace(path)
