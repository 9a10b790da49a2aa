"""Several real processes on one machine: one run, one log; a dead one ends the job."""

import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from train_problems import harness

from h2g.errors import InputError
from h2g.train import processes

LONG = ("--config.train.steps=200000", "--config.train.checkpoint_every=100")


def start(folder, count: int, *words, devices: int = 1) -> list[subprocess.Popen]:
  """`count` processes of the command line that meet at a free port."""
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
  env = dict(
    os.environ,
    XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}",
    PYTHONPATH=str(harness.ROOT),
    JAX_PLATFORMS="cpu",
  )
  job = lambda i: (
    (f"--coordinator_address=127.0.0.1:{port}", f"--num_processes={count}", f"--process_id={i}")
    if count > 1
    else ()
  )
  return [
    subprocess.Popen(
      [
        sys.executable,
        "-m",
        *harness.arguments(folder, *words, *job(i), variant="stream"),
      ],
      env=env,
      cwd=harness.HERE,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(count)
  ]


def ended(job: list[subprocess.Popen], seconds: float = 100) -> list[tuple[str, str]]:
  """(stdout, stderr) of each; none is left behind."""
  try:
    return [process.communicate(timeout=seconds) for process in job]
  finally:
    for process in job:
      if process.poll() is None:
        process.kill()
        process.communicate()


ONE = (
  "--config.num_seeds=1",
  "--config.hidden=16",
  "--config.mesh.data=1",
  "--config.mesh.fsdp=-1",
)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
  """Parameters split over the processes; then the run of two is read and checked by one."""
  said = {}
  for count in (1, 2):
    job = start(tmp_path / str(count), count, *ONE)
    said[count] = ended(job)
    assert [process.returncode for process in job] == [0] * count, said[count]
  assert "step" in said[2][0][0] and "step" not in said[2][1][0]  # only the first speaks
  compare(tmp_path / "1", tmp_path / "2")


@pytest.mark.slow
def test_four_processes_train_as_one(tmp_path):
  for count in (1, 4):
    job = start(tmp_path / str(count), count, *ONE)
    said = ended(job)
    assert [process.returncode for process in job] == [0] * count, said
  compare(tmp_path / "1", tmp_path / "4")


def compare(one, other) -> None:
  for a, b in zip(harness.rows(one), harness.rows(other), strict=True):
    assert a["step"] == b["step"]
    np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
  assert harness.results(one)["test"] == harness.results(other)["test"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_one_that_is_ended_ends_the_job(tmp_path, number):
  job = start(tmp_path / "run", 2, *ONE, *LONG)
  harness_wait(job, tmp_path / "run")
  before = time.monotonic()
  job[1].send_signal(number)
  said = ended(job, 60)
  assert time.monotonic() - before < 60
  if number == signal.SIGKILL:
    assert job[1].returncode == -signal.SIGKILL
    # Whoever notices first speaks: our own line, or the runtime's, which aborts.
    assert job[0].returncode in (76, -signal.SIGABRT), said[0]
    ours, runtime = "another process of the job is gone (", "another task died"
    assert (ours if job[0].returncode == 76 else runtime) in said[0][1]
  else:  # all save, at the same step
    assert [process.returncode for process in job] == [75, 75], said
    assert "another process was told to stop: saved step" in said[0][0]
  assert not (tmp_path / "run" / "results.json").exists()


def harness_wait(job, folder) -> None:
  end = time.monotonic() + 60
  while not list(folder.glob("checkpoints/*/[1-9]*")):
    assert all(process.poll() is None for process in job), [p.communicate() for p in job]
    assert time.monotonic() < end, "no checkpoint in a minute"
    time.sleep(0.05)


@pytest.mark.smoke
def test_jobs_are_recognised():
  assert not processes.in_a_job({})
  assert not processes.in_a_job({"SLURM_NTASKS": "4"})  # a shell inside an allocation
  assert processes.in_a_job({"SLURM_NTASKS": "4", "SLURM_PROCID": "2"})
  assert not processes.in_a_job({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"})
  assert processes.in_a_job({"OMPI_COMM_WORLD_SIZE": "2"})
  assert processes.in_a_job({"TPU_WORKER_HOSTNAMES": "a,b"})
  assert not processes.several() and not processes.any_of(False) and processes.any_of(True)


@pytest.mark.parametrize(
  "given, message",
  [(("a:1", None, 0), "all of .* or none"), (("a:1", 2, 2), "they count from 0")],
)
def test_flags_that_do_not_fit(given, message):
  with pytest.raises(InputError, match=message):
    processes.join(*given, False)
