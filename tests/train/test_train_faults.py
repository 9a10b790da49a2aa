"""The list of docs/faults.md from the command line: each ends as it says, within a minute."""

import contextlib
import os
from pathlib import Path
import resource
import signal
import subprocess
import time

import pytest
from train_problems import harness

from h2g.train import watch

LONG = ("--config.train.steps=100000",)
MINUTE = 60  # seconds of work after which nothing may go on
WAIT = 400  # seconds that the clock may show meanwhile on a machine with more to do
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


def run(folder, *words, config="faulty", **how):
  """(status, stdout, stderr) of the command line, which must end in time."""
  variant = "" if config == "faulty" else "full"
  before = worked()
  process = harness.spawn(folder, *words, config=config, variant=variant, **how)
  try:
    out, error = process.communicate(timeout=WAIT)
  finally:
    process.kill()
  assert worked() - before < MINUTE
  return process.returncode, out, error


def worked() -> float:
  """Seconds that ended processes of this one have computed."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def saved(folder) -> list[Path]:
  found = [path for path in folder.glob("checkpoints/*/*") if path.name.isdigit()]
  return sorted(found, key=lambda path: int(path.name))


def test_a_batch_that_does_not_come_ends_the_run(tmp_path):
  words = ("--config.hang_at=7", "--config.train.watchdog=12.0", "--config.train.prefetch=1")
  status, _, error = run(tmp_path, *words)
  assert status == 77, error
  said = error.splitlines()[0]
  assert said.startswith("error: no sign of life for 12 s in waiting for the batch of step 6: ")
  assert "in __next__" in error, "where it stands"
  assert saved(tmp_path)[-1].name == "5"


def test_the_watch_adds_up_phases_and_spares_what_goes_on(monkeypatch):
  ended = []
  monkeypatch.setattr(watch.processes, "leave", ended.append)
  with watch.Watch(0.3) as watching:
    for _ in range(5):
      with watching.phase("data", "reading"):
        time.sleep(0.1)
    assert not ended
    time.sleep(0.5)
  assert ended and ended[0] == 77
  assert 0.5 <= watching.seconds["data"] < 0.9 and watching.seconds["compute"] == 0.0
  with watch.Watch(0.0):
    time.sleep(0.05)


@pytest.fixture
def small_disk(tmp_path):
  """A disk of one megabyte and a half."""
  folder = tmp_path / "disk"
  folder.mkdir()
  subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", folder], check=True)
  yield folder
  subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
@AS_ROOT
def test_the_disk_fills_up_in_a_save(small_disk, tmp_path):
  words = ("--config.hidden=2000", *LONG, "--config.train.checkpoint_every=50")
  status, _, error = run(small_disk / "run", *words, config="blobs")
  assert status == 2, error
  assert error.startswith(f"error: cannot write to {small_disk}") and "No space left" in error
  assert len(error.splitlines()) == 1
  assert not list((small_disk / "run").rglob("*tmp*"))
  for folder in saved(small_disk / "run"):  # what stands is whole
    assert (folder / "_CHECKPOINT_METADATA").is_file()


@pytest.mark.slow
@AS_ROOT
def test_a_read_only_work_directory(tmp_path):
  """Read-only from the start, and since the last run."""
  folder = tmp_path / "disk"
  folder.mkdir()
  subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", folder], check=True)
  try:
    process = harness.spawn(folder / "begun", *LONG, config="faulty", variant="")
    wait_for(lambda: len(saved(folder / "begun")) > 1, process)
    process.kill()
    process.communicate()
    before = sorted(folder.rglob("*"))
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    for name in ("new", "begun"):
      status, _, error = run(folder / name, *LONG)
      assert status == 2, error
      assert "Read-only file system" in error and len(error.splitlines()) == 1
    assert sorted(folder.rglob("*")) == before
  finally:
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["truncated", "metadata", "half", "all"])
def test_a_damaged_checkpoint(which, tmp_path):
  process = harness.spawn(tmp_path, *LONG, config="faulty", variant="")
  wait_for(lambda: len(saved(tmp_path)) > 1, process)
  process.kill()
  process.communicate()
  *_, before, last = saved(tmp_path)
  for folder in (before, last) if which == "all" else (last,):
    if which == "half":
      folder.rename(f"{folder}.orbax-checkpoint-tmp")
      continue
    files = [path for path in folder.rglob("*") if path.is_file()]
    metadata = [path for path in files if "meta" in path.name.lower()]
    for path in files if which in ("truncated", "all") else metadata:
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  process = harness.spawn(tmp_path, *LONG, config="faulty", variant="")
  if which != "all":
    wait_for(lambda: saved(tmp_path)[-1] != before and saved(tmp_path)[-1] != last, process)
    process.send_signal(signal.SIGTERM)
  out, error = process.communicate(timeout=WAIT)
  if which == "all":
    assert process.returncode == 2 and "can be read" in error, error
    assert len(error.splitlines()) == 1 and last.is_dir() and before.is_dir()
  else:
    assert process.returncode == 75, error
    assert f"going on from step {before.name}" in out
    assert ("is damaged" in out) == (which != "half")


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["stop", "skip", "rollback"])
def test_nan_in_batch_7(policy, tmp_path):
  status, out, error = run(
    tmp_path, "--config.nan_batches=(7,)", f"--config.train.on_divergence={policy}"
  )
  assert status == (3 if policy == "stop" else 0), error
  assert "loss is nan at step 7, seed 0" in (error if policy == "stop" else out)


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_process_of_two_that_stands_still_ends_both(stopped, tmp_path):
  """One is frozen whole: the coordinator misses its sign of life, or the watch ends."""
  from test_train_processes import ended
  from test_train_processes import ONE
  from test_train_processes import start

  job = start(tmp_path, 2, *ONE, *LONG, "--config.train.watchdog=40.0")
  try:
    wait_for(lambda: saved(tmp_path), job[0])
    job[stopped].send_signal(signal.SIGSTOP)
    before = worked()
    job[1 - stopped].wait(WAIT)
    assert worked() - before < MINUTE
    assert job[1 - stopped].returncode in (76, 77, -signal.SIGABRT)
  finally:
    for process in job:
      with contextlib.suppress(ProcessLookupError):
        process.kill()
    ended(job)


def wait_for(condition, process) -> None:
  end = time.monotonic() + WAIT
  while not condition():
    assert process.poll() is None, process.communicate()
    assert time.monotonic() < end
    time.sleep(0.02)
