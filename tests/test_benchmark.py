"""`python -m h2g.benchmark`: grids, statistics; a run that fails, resumes and writes its tables."""

import csv
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest

from h2g.benchmark import __main__ as command
from h2g.benchmark import grid
from h2g.benchmark import report
from h2g.benchmark.table import Score
from h2g.benchmark.table import Table
from h2g.errors import InputError
from h2g.train import jobs

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "h2gb.py"


def table(means, seeds=4, spread=0.01):
  """means [D][M]; NaN fails."""
  rng = np.random.default_rng(0)
  datasets = tuple(f"d{i}" for i in range(len(means)))
  models = tuple(f"m{i}" for i in range(len(means[0])))
  scores = {}
  for dataset, row in zip(datasets, means):
    noise = rng.normal(0, spread, seeds)  # the same splits: paired
    for model, mean in zip(models, row):
      own = rng.normal(0, spread / 10, seeds)
      test = () if np.isnan(mean) else tuple(mean + noise + own)
      seeds_of = tuple(range(len(test)))
      reason = "" if test else "ran out of luck"
      scores[dataset, model] = Score("accuracy", test, seeds_of, 1.0, None, reason)
  return Table(datasets, models, scores)


def test_a_failed_run_ranks_last_and_ties_share():
  found = table([[0.9, 0.5, np.nan], [0.2, 0.6, 0.4]])
  np.testing.assert_array_equal(found.ranks(), [[1, 2, 3], [3, 1, 2]])
  np.testing.assert_array_equal(found.mean_ranks(), [2, 1.5, 2.5])
  same = Score("accuracy", (0.5,), (0,), None, None)
  tied = Table(("d",), ("a", "b"), {("d", "a"): same, ("d", "b"): same})
  np.testing.assert_array_equal(tied.ranks(), [[1.5, 1.5]])


def test_paired_tests_find_small_differences_on_the_same_splits():
  found = table([[0.9, 0.8999, 0.88]], seeds=6, spread=0.05)
  assert found.as_good_as_best("d0") >= {"m0", "m1"}
  assert "m2" not in table([[0.9, 0.9, 0.8]], seeds=6, spread=0.05).as_good_as_best("d0")
  assert table([[0.9, 0.1]], seeds=1).as_good_as_best("d0") == {"m0", "m1"}


def test_critical_difference_is_demsars():
  # Demsar 2006, table 5: q of 5 classifiers at 0.05 is 2.728.
  found = table([[0.1, 0.2, 0.3, 0.4, 0.5]] * 10)
  assert found.critical_difference() == pytest.approx(2.728 * np.sqrt(5 * 6 / 60), abs=2e-3)
  assert found.friedman() < 1e-6
  assert table([[0.1, 0.2, 0.3]]).critical_difference() is None


def test_reports_say_what_failed_and_what_was_published(tmp_path):
  found = table([[0.9, np.nan], [0.7, 0.8]])
  report.write(found, tmp_path, published={("d0", "m1"): "51.2 ± 0.3"}, title="A | title <b>")
  text = (tmp_path / "table.md").read_text()
  assert "d0, m1: ran out of luck" in text and "51.2 ± 0.3" in text and "**0.9" in text
  assert "A | title &lt;b&gt;" in (tmp_path / "table.html").read_text()
  with open(tmp_path / "table.csv", newline="") as file:
    rows = list(csv.DictReader(file))
  assert list(rows[0]) == list(report.COLUMNS) and len(rows) == 3
  assert (tmp_path / "ranks.png").read_bytes().startswith(b"\x89PNG")


def test_published_numbers_are_read(tmp_path):
  path = tmp_path / "published.csv"
  path.write_text("# where from\ndataset,model,mean,std\nd0,m1,51.2,0.3\nd0,m2,50,\n")
  assert report.read_published(path) == {("d0", "m1"): "51.2 ± 0.3", ("d0", "m2"): "50"}


def test_names_are_checked():
  offered = grid.Grid.of(CONFIG)
  found = grid.cells(offered, datasets="celegans,liar", models="sgc_1hop", preset="")
  assert [cell.variant for cell in found] == [
    f"fast,dataset={d},model=sgc,view=1hop" for d in ("celegans", "liar")
  ]
  for flags, message in (
    (dict(datasets="celegan"), "did you mean celegans"),
    (dict(models="zzz"), "there are h2g_former"),
    (dict(preset="slow"), "--preset slow"),
    (dict(models=","), "--models is empty"),
  ):
    with pytest.raises(InputError, match=message):
      grid.cells(offered, **dict(datasets="all", models="all", preset="") | flags)
  with pytest.raises(InputError, match="no such file"):
    grid.Grid.of("nowhere.py")


def test_every_cell_is_a_config():
  import configs.h2gb as module

  for cell in grid.cells(grid.Grid.of(CONFIG), datasets="all", models="all", preset=""):
    assert module.get_config(cell.variant).model.name


@pytest.mark.parametrize(
  "words, status, said",
  [
    (["--help"], 0, "h2g_former"),
    ([], 2, "--workdir is missing"),
    (["--workdir=x", "--models=nope"], 2, "--models nope"),
    (["--workdir=x", "--seeds=0"], 2, "seeds"),
    (["--workdir=x", "stray"], 2, "'stray'"),
  ],
)
def test_the_command_line(words, status, said, capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  assert command.main(["benchmark", *words]) == status
  out = capsys.readouterr()
  assert said in out.out + out.err


@pytest.mark.slow
def test_a_benchmark_survives_a_failure_and_resumes(tmp_path):
  words = ["--datasets=celegans", "--models=mlp,gcn", "--preset=tiny", "--seeds=2", "--jobs=2"]
  words += [f"--workdir={tmp_path}", f"--config={CONFIG}", "--config.train.steps=12"]
  run = lambda: subprocess.run(
    [sys.executable, "-m", "h2g.benchmark", *words],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
  )
  # A file where a run wants its directory: that run fails, the other does not.
  (tmp_path / "celegans" / "gcn").mkdir(parents=True)
  (tmp_path / "celegans" / "gcn" / "config.json").write_text('{"another": 1}')
  first = run()
  assert first.returncode == 1, first.stderr
  assert "failed: celegans gcn" in first.stdout and "1 of 2 runs" in first.stdout
  text = (tmp_path / "table.md").read_text()
  assert "another config" in text and "| mlp | 1.00 |" in text

  (tmp_path / "celegans" / "gcn" / "config.json").unlink()
  kept = (tmp_path / "celegans" / "mlp" / "results.json").stat().st_mtime_ns
  second = run()
  assert second.returncode == 0, second.stderr
  assert (tmp_path / "celegans" / "mlp" / "results.json").stat().st_mtime_ns == kept
  with open(tmp_path / "table.csv", newline="") as file:
    rows = list(csv.DictReader(file))
  assert [row["model"] for row in rows] == ["mlp", "gcn"]
  assert all(float(row["step_ms"]) > 0 and row["seeds"] == "2" for row in rows)


def test_runs_at_a_time_divide_the_cores(monkeypatch):
  monkeypatch.setattr(jobs.os, "sched_getaffinity", lambda pid: {0, 1, 2, 5}, raising=False)
  assert jobs._shares(2) == [{0, 2}, {1, 5}]
  assert jobs._shares(1) == [set()] and jobs._shares(8) == [set()] * 8


def test_a_run_starts_after_those_it_reads(monkeypatch, tmp_path):
  told, started = [], threading.Event()

  def train(job, minutes, cores):
    told.append(f"{job.name} begins")
    if job.name == "reader":
      assert "read ends" in told
    elif job.name == "other":
      started.set()
    else:
      assert started.wait(10)  # the one behind the reader is taken meanwhile
    told.append(f"{job.name} ends")

  monkeypatch.setattr(jobs, "_train", train)
  monkeypatch.setattr(jobs, "_start_server", lambda *_: None)
  job = lambda name, *after: jobs.Job(name, "c.py", tmp_path / name, after=after)
  jobs.run([job("read"), job("reader", tmp_path / "read"), job("other")], at_once=2)
  assert len(told) == 6
