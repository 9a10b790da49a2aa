"""Many runs of the trainer, each a process of its own: what one does to itself, it does alone."""

from collections.abc import Callable
from collections.abc import Sequence
import concurrent.futures
import contextlib
import json
import multiprocessing
from multiprocessing import connection
from multiprocessing import forkserver
import os
from pathlib import Path
import queue
import sys
import threading
from typing import NamedTuple

from tqdm import tqdm

SERVER = multiprocessing.get_context("forkserver")
# `start` asks after all processes, and a status can be read once: by one thread at a time.
PROCESSES = threading.Lock()
PRELOADED = ("h2g.train.__main__", "h2g.train.loop", "matplotlib.backends.backend_agg")
PREEMPTED = (75, 130)  # of `h2g.train`: told to stop and saved
# glibc keeps a step's buffers, in large pages, instead of having them made anew by the kernel for
# every step: a quarter off the step of a graph with 10^5 edges.
MALLOC = {
  "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=8589934592"
  ":glibc.malloc.trim_threshold=17179869184"
}
# Arenas of threads keep nothing large; on several cores the lock of a single one costs more.
ONE_ARENA = ":glibc.malloc.arena_max=1"
RESULTS = "results.json"
FAILURE = "failure.json"


class Job(NamedTuple):
  """One run.

  name: for people. config: FILE:VARIANT. folder: its work directory. options: `--config.key=value`.
  after: folders of jobs that it reads; it starts when these have ended, well or not.
  """

  name: str
  config: str
  folder: Path
  options: tuple[str, ...] = ()
  after: tuple[Path, ...] = ()

  @property
  def words(self) -> list[str]:
    """The command line after `python`."""
    words = ["-m", "h2g.train", "--noprogress", f"--config={self.config}"]
    return [*words, f"--workdir={self.folder}", *self.options]

  @property
  def experiment(self) -> str:
    """The module that a config of this name has by convention; there may be none."""
    return f"experiments.{Path(self.config.partition(':')[0]).stem}.experiment"


def run(
  jobs: Sequence[Job],
  *,
  at_once: int = 1,
  minutes: float = 0,
  done: Callable[[], None] = lambda: None,
) -> None:
  """Runs the jobs; one that is finished already says so in half a second.

  Runs are forks of a server process (multiprocessing's): a script that calls this outside of a
  function does so under `if __name__ == "__main__"`.

  A job that fails leaves failure.json in its folder, which says why, and is tried again by the next
  call. A job that was cut goes on from its last checkpoint.

  Args:
    jobs: in the order in which they start.
    at_once: runs at a time, each on cores of its own (Linux): two on all cores would wait for each
      other's threads. With more than one, their times are not those of a quiet machine.
    minutes: a run that takes longer is stopped and counts as failed; 0 lets it.
    done: called after each job.
  Raises:
    KeyboardInterrupt: a run was told to stop, and saved.
  """
  shares, free = _shares(at_once), queue.SimpleQueue()
  for share in shares:
    free.put(share)
  if jobs:
    _start_server(all(len(share) == 1 for share in shares), jobs[0].experiment)
  bar = tqdm(total=len(jobs), unit="run", disable=not sys.stderr.isatty())

  def one(job: Job) -> None:
    bar.set_description(job.name)
    share = free.get()
    try:
      reason = _train(job, minutes, share)
    finally:
      free.put(share)
    _note(job.folder, reason)
    if not sys.stderr.isatty():
      print(f"{job.name}: {reason or 'done'}", file=sys.stderr, flush=True)
    bar.update()

  waiting, running = list(jobs), {}
  with bar, concurrent.futures.ThreadPoolExecutor(at_once) as pool:
    while waiting or running:
      open_ = {job.folder for job in (*waiting, *running.values())}
      ready = [job for job in waiting if open_.isdisjoint(job.after)]
      for job in ready[: at_once - len(running)]:
        waiting.remove(job)
        running[pool.submit(one, job)] = job
      ended, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
      for future in ended:
        del running[future]
        future.result()
        done()


def own_cores() -> list[int]:
  """Numbers of the cores that this process may use; none where the system does not tell (macOS)."""
  return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def read(path: Path) -> dict | None:
  """The content of a JSON file, None where there is none."""
  return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def outcome(folder: Path) -> tuple[dict | None, str]:
  """(results of a finished run, ""), or (None, why there are none)."""
  found, failed = read(folder / RESULTS), read(folder / FAILURE)
  if found is None or failed is not None:  # results beside a failure are those of another config
    return None, (failed or {}).get("reason", "not run yet")
  return found, ""


def _shares(at_once: int) -> list[set[int]]:
  """Cores for each of the runs at a time; empty sets where they cannot or need not be divided."""
  cores = own_cores()
  if at_once == 1 or at_once > len(cores):
    cores = []
  return [set(cores[at::at_once]) for at in range(at_once)]


def _train(job: Job, minutes: float, cores: set[int]) -> str | None:
  """Runs one command; None where it finished, or the reason why it did not."""
  job.folder.mkdir(parents=True, exist_ok=True)
  path = job.folder / "log.txt"
  begin = path.stat().st_size if path.exists() else 0
  process = SERVER.Process(target=_work, args=(job.words[2:], path, cores, dict(os.environ)))
  with PROCESSES:
    process.start()
  try:
    if not connection.wait([process.sentinel], 60 * minutes or None):
      return f"took longer than {minutes:g} minutes"
  finally:
    with PROCESSES:
      process.kill()  # nothing, if it has ended
      process.join()
  status = process.exitcode
  if status == 0:
    return None
  if status in PREEMPTED:
    raise KeyboardInterrupt
  if status < 0:
    return f"killed by signal {-status}" + (" (out of memory?)" if status == -9 else "")
  said = path.read_bytes()[begin:].decode(errors="replace").strip().splitlines()
  return said[-1].removeprefix("error: ") if said else f"exit status {status}"


def _work(words: list[str], log: Path, cores: set[int], environment: dict[str, str]) -> None:
  """The run, in a process of its own: what it prints goes to the log."""
  out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
  os.dup2(out, 1)
  os.dup2(out, 2)
  os.environ.update(environment)  # as it is now, not as it was when the server began
  if cores:
    with contextlib.suppress(OSError):  # these cores are no longer ours
      os.sched_setaffinity(0, cores)
  from h2g.train.__main__ import main

  sys.exit(main(["h2g.train", *words]))


def _start_server(one_core: bool, experiment: str) -> None:
  """Starts the process that has imported what runs need, and of which each run is a fork.

  Once in a process: later calls find it there.
  """
  SERVER.set_forkserver_preload([*PRELOADED, experiment])
  # The caller's import path: a clone that is not installed works as well. A NumPy of one thread: of
  # several, a fork has one that does nothing.
  path = os.pathsep.join(filter(None, sys.path))
  wanted = dict(PYTHONPATH=path) | (dict(OPENBLAS_NUM_THREADS="1") if one_core else {})
  malloc = {name: value + ONE_ARENA * one_core for name, value in MALLOC.items()}
  before = dict(os.environ)
  try:
    os.environ.update(malloc | before | wanted)
    forkserver.ensure_running()
  finally:
    os.environ.clear()
    os.environ.update(before)


def _note(folder: Path, reason: str | None) -> None:
  """failure.json, there exactly while the last try failed."""
  path = folder / FAILURE
  if reason is None:
    path.unlink(missing_ok=True)
    return
  part = path.with_suffix(".part")
  part.write_text(json.dumps({"reason": reason}) + "\n", encoding="utf-8")
  part.replace(path)
