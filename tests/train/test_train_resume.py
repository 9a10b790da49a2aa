"""Stopped anywhere, by any means, a run ends with the bits of the run that was not stopped."""

import dataclasses
import re
import signal
import time

import numpy as np
import pytest
from train_problems import blobs
from train_problems import harness

LONG = (
  "--config.train.steps=2000",
  "--config.train.eval_every=100",
  "--config.train.checkpoint_every=100",
)


@pytest.fixture
def sigterm_at(monkeypatch):
  """sigterm_at(n): the process gets SIGTERM while its n-th evaluation is summarised."""

  def arrange(count: int) -> None:
    build = blobs.build
    seen = []

    def with_signal(config):
      experiment = build(config)

      def summarise(stats):
        seen.append(1)
        if len(seen) == count:
          signal.raise_signal(signal.SIGTERM)
        return experiment.summarise(stats)

      return dataclasses.replace(experiment, summarise=summarise)

    monkeypatch.setattr(blobs, "build", with_signal)

  return arrange


@pytest.mark.few(1)
@pytest.mark.parametrize("variant", ["full", "stream"])
def test_sigterm_saves_and_the_command_goes_on(variant, finished, tmp_path, sigterm_at, capsys):
  folder = tmp_path / "run"
  sigterm_at(5)  # three seeds: in the second evaluation, at step 20
  assert harness.train(folder, variant=variant) == 75
  said = capsys.readouterr().out
  (step,) = map(int, re.findall(r"SIGTERM: saved step (\d+) of 60", said))
  assert 20 <= step <= 30
  assert [row["step"] for row in harness.rows(folder)] == list(range(1, step + 1))
  assert harness.train(folder, variant=variant) == 0
  assert f"going on from step {step}" in capsys.readouterr().out
  harness.assert_same_run(folder, finished[variant])


@pytest.mark.slow
def test_a_run_in_sequence_goes_on_in_the_middle_of_its_second_seed(tmp_path, sigterm_at):
  words = ("--config.train.seeds_together=False",)
  assert harness.train(tmp_path / "whole", *words) == 0
  sigterm_at(6 + 1 + 2)  # after the first seed's evaluations
  assert harness.train(tmp_path / "cut", *words) == 75
  assert harness.train(tmp_path / "cut", *words) == 0
  harness.assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_a_run_goes_on_with_another_number_of_devices(finished, tmp_path, sigterm_at):
  """Saved with three seeds padded to four on two devices, read on one."""
  sigterm_at(5)
  folder = tmp_path / "run"
  assert harness.train(folder) == 75
  assert harness.train(folder, "--config.mesh.data=1") == 0
  for one, other in zip(harness.rows(folder), harness.rows(finished["full"])):
    np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-5)
  assert harness.results(folder)["test"] == harness.results(finished["full"])["test"]


def test_kill_9_loses_nothing(tmp_path):
  """The real command, killed twice between two saves."""
  whole = tmp_path / "whole"
  assert harness.train(whole, *LONG) == 0
  cut = tmp_path / "cut"
  for steps in (200, 900):
    process = harness.spawn(cut, *LONG)
    wait_for_checkpoint(process, cut, steps)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (cut / "results.json").exists()
  assert harness.train(cut, *LONG) == 0
  harness.assert_same_run(cut, whole)


@pytest.mark.slow
@pytest.mark.timeout(3600)  # minutes on an idle machine, an hour on a busy one
@pytest.mark.parametrize(("variant", "steps"), [("full", 20000), ("stream", 10000)])
def test_twenty_kills(variant, steps, tmp_path):
  """SIGKILL and SIGTERM at random moments, in start-up, and in saves on purpose."""
  words = (*LONG, f"--config.train.steps={steps}", "--config.hidden=200")
  run = lambda name: harness.spawn(tmp_path / name, *words, variant=variant)
  process = run("whole")
  _, error = process.communicate()
  assert process.returncode == 0, error
  generator = np.random.default_rng(0)
  steps_at_kill, halves = [0], 0
  for kill in range(20):
    process = run("cut")
    if kill % 4 >= 2:  # while a save is under way
      wait_for_checkpoint(process, tmp_path / "cut", steps_at_kill[-1] + 1)
      wait_for_half(process, tmp_path / "cut")
      time.sleep(float(generator.uniform(0.0, 0.005)))
    elif kill % 4:  # some time after it has gone on and saved
      wait_for_checkpoint(process, tmp_path / "cut", steps_at_kill[-1] + 1)
      time.sleep(float(generator.uniform(0.0, 0.5)))
    else:  # perhaps in start-up
      time.sleep(float(generator.uniform(0.3, 4.0)))
    assert process.poll() is None, f"it ended before kill {kill}, {steps_at_kill}: make it longer"
    process.send_signal(signal.SIGKILL if kill % 3 else signal.SIGTERM)
    _, error = process.communicate()
    halves += any(half_saved(tmp_path / "cut"))
    expected = (-signal.SIGKILL,) if kill % 3 else (75, -signal.SIGTERM)
    assert process.returncode in expected, error
    steps_at_kill.append(last_step(tmp_path / "cut"))
  assert steps_at_kill == sorted(steps_at_kill), "a committed step was lost"
  assert halves >= 3, "hardly a kill hit a save"
  process = run("cut")
  _, error = process.communicate()
  assert process.returncode == 0, error
  harness.assert_same_run(tmp_path / "cut", tmp_path / "whole")


def wait_for_checkpoint(process, folder, step: int) -> None:
  end = time.monotonic() + 400
  while last_step(folder) < step:
    assert process.poll() is None, process.communicate()
    assert time.monotonic() < end, "no checkpoint"
    time.sleep(0.02)


def wait_for_half(process, folder) -> None:
  end = time.monotonic() + 400
  while not any(half_saved(folder)):
    assert process.poll() is None, process.communicate()
    assert time.monotonic() < end, "no save"
    time.sleep(0.0005)


def half_saved(folder):
  return folder.glob("checkpoints/*/*.orbax-checkpoint-tmp")


def last_step(folder) -> int:
  found = [int(path.name) for path in folder.glob("checkpoints/*/*") if path.name.isdigit()]
  return max(found, default=0)
