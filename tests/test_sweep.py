"""`python -m h2g.sweep`: its points, its checks; a sweep that runs, resumes and grows."""

import csv
import os
import pathlib
import subprocess
import sys

import pytest

from h2g.errors import InputError
from h2g.sweep import __main__ as command
from h2g.sweep.axes import Axis
from h2g.sweep.axes import Point
from h2g.sweep.axes import points

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = ROOT / "tests" / "train" / "configs" / "blobs.py"


def test_a_grid_runs_its_last_axis_fastest():
  axes = [Axis.parse("train.lr=1e-3,3e-3"), Axis.parse("config.sample.fanouts=(8,4),(2,)")]
  found = points(axes)
  assert [point.label for point in found] == [
    "lr=1e-3,fanouts=(8,4)", "lr=1e-3,fanouts=(2,)", "lr=3e-3,fanouts=(8,4)", "lr=3e-3,fanouts=(2,)"
  ]  # fmt: skip
  assert found[0].options == ("--config.train.lr=1e-3", "--config.sample.fanouts=(8,4)")
  variant = Point((("variant.model", "hgt"), ("a.dim", "1"), ("b.dim", "2")))
  assert variant.config("c.py:tiny") == "c.py:tiny,model=hgt"
  assert variant.config("c.py") == "c.py:model=hgt"
  assert variant.label == "variant.model=hgt,a.dim=1,b.dim=2"
  assert Point((("a", "x/y"),)).folder != Point((("a", "x_y"),)).folder


def test_random_points_differ_lie_in_range_and_are_kept_when_more_are_drawn():
  axes = [Axis.parse(a) for a in ("lr=log(1e-4,1e-1)", "rate=uniform(0,0.5)", "n=integer(1,3)")]
  few, many = points(axes, draws=5), points(axes, draws=40)
  assert many[:5] == few and len(set(many)) == 40 and points(axes, draws=5, seed=1) != few
  columns = list(zip(*(map(float, dict(point.settings).values()) for point in many)))
  assert 1e-4 <= min(columns[0]) < 1e-3 and 1e-2 < max(columns[0]) <= 1e-1
  assert min(columns[1]) >= 0 and max(columns[1]) <= 0.5 and set(columns[2]) == {1, 2, 3}


@pytest.mark.parametrize(
  "axes, draws, message",
  [
    ([], 0, "--axis is missing"),
    (["lr"], 0, "write NAME=V1,V2"),
    (["lr=1,,2"], 0, "empty value"),
    (["lr=log(0,1)"], 1, "LOW > 0"),
    (["lr=integer(1,2.5)"], 1, "whole numbers"),
    (["lr=log(1,2)"], 0, "give --random N"),
    (["lr=1", "lr=2"], 0, "stands twice"),
    (["lr=1,2"], 3, "about 2 different points"),
  ],
)
def test_axes_that_cannot_be_served_are_named(axes, draws, message):
  with pytest.raises(InputError, match=message.replace("(", r"\(")):
    points([Axis.parse(axis) for axis in axes], draws=draws)


def run(tmp_path, *words):
  where = (f"--config={CONFIG}:full", f"--workdir={tmp_path}")
  return subprocess.run(
    [sys.executable, "-m", "h2g.sweep", *where, "--seeds=2", "--config.train.steps=10", *words],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
  )


def test_every_point_is_checked_before_one_runs(tmp_path, capsys):
  words = ["sweep", f"--config={CONFIG}", f"--workdir={tmp_path / 'x'}"]
  assert command.main([*words, "--axis=train.lr=1,2", "--axis=hiden=1"]) == 2
  assert "did you mean --config.hidden" in capsys.readouterr().err
  assert command.main([*words, "--axis=hidden=8,wide"]) == 2
  assert "hidden=wide" in capsys.readouterr().err
  assert not (tmp_path / "x").exists()


def test_job_lists_name_every_run(tmp_path, capsys):
  words = ["sweep", f"--config={CONFIG}", f"--workdir={tmp_path}", "--axis=hidden=8,16,32"]
  for kind, name in (("slurm", "sweep.sbatch"), ("xpk", "sweep.sh"), ("list", "jobs.txt")):
    assert command.main([*words, f"--emit={kind}"]) == 0
    assert "3 runs" in capsys.readouterr().out
    text = (tmp_path / name).read_text()
    if kind != "list":
      assert subprocess.run(["bash", "-n", tmp_path / name]).returncode == 0
  assert "--array=1-3" in (tmp_path / "sweep.sbatch").read_text()
  assert (tmp_path / "sweep.sh").read_text().count("xpk workload create") == 3
  lines = text.splitlines()
  assert len(lines) == 3 and lines[1].startswith("python -m h2g.train ")
  assert lines[1].endswith("--config.hidden=16")


@pytest.mark.slow
def test_a_sweep_orders_by_validation_keeps_what_is_done_and_names_what_failed(tmp_path):
  (tmp_path / "hidden=16").mkdir()
  (tmp_path / "hidden=16" / "config.json").write_text('{"another": 1}')
  first = run(tmp_path, "--axis=hidden=4,16")
  assert first.returncode == 1, first.stderr
  assert "1 of 2 points" in first.stdout and "another config" in (tmp_path / "table.md").read_text()

  (tmp_path / "hidden=16" / "config.json").unlink()
  kept = (tmp_path / "hidden=4" / "results.json").stat().st_mtime_ns
  second = run(tmp_path, "--axis=hidden=4,16", "--jobs=2")
  assert second.returncode == 0, second.stderr
  assert (tmp_path / "hidden=4" / "results.json").stat().st_mtime_ns == kept
  with open(tmp_path / "table.csv", newline="") as file:
    rows = list(csv.DictReader(file))
  assert {row["hidden"] for row in rows} == {"4", "16"} and rows[0]["seeds"] == "2"
  assert float(rows[0]["val"]) >= float(rows[1]["val"])
  assert f"--config.hidden={rows[0]['hidden']}" in second.stdout.splitlines()[-1]
  assert (tmp_path / "axes.png").read_bytes().startswith(b"\x89PNG")
