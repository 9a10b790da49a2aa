"""What cannot be used ends in one line that names it and the remedy, and writes nothing."""

import json
import os
import resource
import signal
import subprocess

import numpy as np
import pytest
from train_problems import harness

from h2g.train.__main__ import main


def error_of(capsys) -> str:
  """The one line on stderr."""
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1 and lines[0].startswith("error: "), lines
  return lines[0]


@pytest.mark.parametrize(
  ("words", "expected"),
  [
    (
      ["--config.train.stps=3"],
      "--config.train.stps is no setting of the config: did you mean --config.train.steps?",
    ),
    (["--config.trian.steps=3"], "did you mean --config.train.steps?"),
    (["--config.colour=3"], "--config.colour is no setting of the config"),
    (["--config.train.steps=abc"], "--config.train.steps=abc: invalid literal"),
    (["--config.train.steps=0"], "config.train.steps=0 cannot be used: use a number >= 1"),
    (["--config.train.optimizer=adamm"], "'adamm' cannot be used: choose from adamw"),
    (["--config.num_seeds=0"], "config.num_seeds=0"),
    (["--config.mesh.data=3"], "mesh (data=3, fsdp=1, tensor=1) does not fit 2 device(s)"),
    (["--config.experiment=nope"], "there is no module experiments.nope.experiment"),
    (["--config.experiment=train_problems.nope"], "there is no module train_problems.nope"),
    (["--wrkdir=x"], "Unknown command line flag 'wrkdir'"),
    (["surplus"], "'surplus' is not understood"),
    (["--workdir=/proc/h2g/run"], "cannot write to /proc/h2g/run"),
    (["--workdir=/etc/hostname"], "--workdir /etc/hostname is a file"),
  ],
)
def test_one_line(words, expected, tmp_path, capsys):
  assert harness.train(tmp_path / "run", *words) == 2
  assert expected in error_of(capsys)
  assert not (tmp_path / "run").exists()


def test_one_line_about_the_config_itself(tmp_path, capsys):
  run = ["--workdir", str(tmp_path / "run")]
  assert harness.train(tmp_path / "run", variant="fool") == 2
  assert error_of(capsys) == "error: unknown variant 'fool': choose full or stream"
  assert main(["h2g.train", "--config", str(tmp_path / "none.py"), *run]) == 2
  assert "none.py cannot be read: there is no such file" in error_of(capsys)
  assert main(["h2g.train", *run]) == 2
  assert "--config is missing" in error_of(capsys)
  assert main(["h2g.train", *run, "--config"]) == 2
  assert "--config has no value" in error_of(capsys)
  assert main(["h2g.train", "--config", str(harness.CONFIG)]) == 2
  assert "--workdir is missing" in error_of(capsys)
  assert not (tmp_path / "run").exists()


def test_help_lists_every_setting(capsys):
  assert main(["h2g.train", "--help"]) == 0
  assert "--config FILE:VARIANT" in capsys.readouterr().out
  assert main(["h2g.train", "--config", str(harness.CONFIG), "--help"]) == 0
  out = capsys.readouterr().out
  assert "--config.train.steps=60" in out  # the config's own
  assert "--config.train.momentum=0.9" in out and "--config.mesh.fsdp=1" in out  # the trainer's


def test_the_directory_of_another_config_is_left_alone(finished, capsys):
  folder = finished["full"]
  before = {path: path.read_bytes() for path in folder.glob("*.*")}
  assert harness.train(folder, "--config.hidden=17", "--config.train.lr=0.5") == 2
  said = error_of(capsys)
  assert "config.hidden is 16 there, 17 here; config.train.lr is 0.01 there, 0.5" in said
  assert "choose another --workdir" in said
  assert before == {path: path.read_bytes() for path in folder.glob("*.*")}
  # What changes no number may change.
  assert harness.train(folder, "--config.train.checkpoint_every=7", "--config.mesh.data=1") == 0


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path, capsys):
  folder = tmp_path / "run"
  for _ in range(2):  # trained anew from the last checkpoint, it ends there again
    assert harness.train(folder, "--config.nan_at=33") == 3
    said = error_of(capsys)
    assert said.startswith("error: loss is nan at step 33, seed 0; the last checkpoint is from")
    rows = harness.rows(folder)
    assert rows[-1]["step"] == 33 and rows[-1]["loss"] == [None] * 3  # JSON knows no NaN
  state = harness.final_state(folder)
  assert state["seeds_0-2 state['step']"] == 20
  assert all(np.isfinite(value).all() for value in state.values())
  assert not (folder / "results.json").exists()


def test_a_full_disk_ends_the_run_whole(tmp_path, finished, capfd):
  """Files above a size cannot be written, as on a full disk; later there is room again."""
  folder = tmp_path / "run"
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1500, before[1]))  # a few rows of metrics.jsonl
  try:
    assert harness.train(folder, "--config.train.compilation_cache=") == 2
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  said = capfd.readouterr().err.splitlines()
  assert said == [
    f"error: cannot write to {folder}: File too large; make room or allow writing there, then "
    "run the same command"
  ]
  for line in (folder / "metrics.jsonl").read_text().splitlines():
    json.loads(line)
  assert (folder / "metrics.jsonl").read_text().endswith("\n")
  assert not list(folder.rglob("*tmp*")) and not (folder / "results.json").exists()
  assert harness.train(folder) == 0
  assert harness.rows(folder) == harness.rows(finished["full"])


def test_no_room_for_a_checkpoint_is_said_before_it_is_begun(tmp_path, monkeypatch, capsys):
  from h2g.train import checkpoint

  usage = checkpoint.shutil._ntuple_diskusage(total=10, used=9, free=1)
  monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage)
  assert harness.train(tmp_path / "run") == 2
  assert "No space left on device (a checkpoint takes up to" in error_of(capsys)
  assert list((tmp_path / "run").glob("checkpoints/*/*")) == []


def test_sigterm_before_training_ends_with_its_status(tmp_path):
  process = harness.spawn(tmp_path / "run")
  try:
    process.communicate(timeout=0.4)  # still importing
  except subprocess.TimeoutExpired:
    process.send_signal(signal.SIGTERM)
  process.communicate()
  assert process.returncode in (75, -signal.SIGTERM)
  assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_permission_is_named(tmp_path, capsys):
  (tmp_path / "locked").mkdir(mode=0o555)
  assert harness.train(tmp_path / "locked" / "run") == 2
  assert "Permission denied" in error_of(capsys)
