"""A whole run: its files, its numbers, its best, its seeds, its shapes."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from train_problems import blobs
from train_problems import harness

from h2g import report
from h2g import train
from h2g.train import watch
from h2g.train.profile import Profile


def test_a_run_leaves_its_results_curves_and_events(finished):
  folder = finished["full"]
  found = json.loads((folder / "results.json").read_text())
  assert (found["dataset"], found["model"], found["metric"]) == ("blobs", "mlp", "accuracy")
  assert found["seeds"] == [0, 1, 2] and found["steps"] == 60
  assert len(found["test"]) == len(found["val"]) == 3
  assert np.isclose(found["test_mean"], np.mean(found["test"]))
  assert np.isclose(found["test_std"], np.std(found["test"], ddof=1))
  assert np.isclose(found["val_mean"], np.mean(found["val"]))
  assert found["compile_count"] == 2  # one train program, one eval program
  assert {"python", "jax", "flax", "optax"} <= found["versions"].keys()
  config = json.loads((folder / "config.json").read_text())
  assert config["train"]["lr"] == 0.01
  assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
  assert found["test_mean"] > 0.45  # three classes: it learns


def test_every_step_has_one_row_and_the_rows_are_in_tensorboard(finished):
  found = harness.rows(finished["full"])
  assert [row["step"] for row in found] == list(range(1, 61))
  assert all(len(row["loss"]) == 3 for row in found)
  assert [row["step"] for row in found if "val/accuracy" in row] == [10, 20, 30, 40, 50, 60]
  scalars = tensorboard_scalars(finished["full"])
  assert set(scalars["loss"]) == set(range(1, 61))
  assert np.isclose(scalars["loss"][60], np.mean(found[-1]["loss"]))
  assert set(scalars["val/accuracy"]) == {10, 20, 30, 40, 50, 60}


def tensorboard_scalars(folder) -> dict[str, dict[int, float]]:
  from tensorboardX.proto.event_pb2 import Event

  scalars: dict[str, dict[int, float]] = {}
  for path in sorted(folder.glob("events/*/*")):
    content = path.read_bytes()
    while content:
      length = int.from_bytes(content[:8], "little")
      event = Event.FromString(content[12 : 12 + length])
      content = content[12 + length + 4 :]
      for value in event.summary.value:
        scalars.setdefault(value.tag, {})[event.step] = value.simple_value
  return scalars


def test_each_seed_is_tested_at_its_own_first_best_validation(finished):
  found = harness.results(finished["full"])
  evaluated = [row for row in harness.rows(finished["full"]) if "val/accuracy" in row]
  for i in range(3):
    val = [row["val/accuracy"][i] for row in evaluated]
    best = evaluated[int(np.argmax(val))]  # argmax takes the first of equals
    assert found["best_step"][i] == best["step"]
    assert found["val"][i] == max(val)
    assert found["test"][i] == best["test/accuracy"][i]
  assert len(set(found["best_step"])) > 1  # or this test would not tell one best from another


def test_the_best_step_is_chosen_by_another_summary_where_asked(finished, tmp_path):
  """Here the smallest: the same run, another choice."""
  config = harness.get_config()
  config.train.compilation_cache = ""
  plain = blobs.build(config)

  def summarise(stats):
    found = plain.summarise(stats)
    return found | {"val/rough": round(found["val/accuracy"], 1)}

  asked = dataclasses.replace(plain, summarise=summarise, select="val/rough", maximise=False)
  found = train.run(asked, config, tmp_path / "run", bar=False)
  evaluated = [row for row in harness.rows(tmp_path / "run") if "val/rough" in row]
  for i in range(3):
    rough = [row["val/rough"][i] for row in evaluated]
    best = evaluated[int(np.argmin(rough))]
    assert found["best_step"][i] == best["step"]
    assert found["test"][i] == best["test/accuracy"][i]
  assert found["selected_by"] == "val/rough"
  assert harness.results(finished["full"])["selected_by"] == "val/accuracy"


def test_the_best_models_can_be_read_back(finished):
  config = harness.get_config("full")
  config.train.compilation_cache = ""
  experiment = blobs.build(config)
  params, rest = train.restore_best(experiment, config, finished["full"])
  batch = experiment.eval_batches((0, 1, 2))
  found = harness.results(finished["full"])
  for i in range(3):
    pick = lambda leaf, i=i: leaf[i]
    own = train.Batch(batch.shared, jax.tree.map(pick, batch.own))
    stats = experiment.evaluate(jax.tree.map(pick, params), jax.tree.map(pick, rest), own)
    assert experiment.summarise(jax.device_get(stats))["val/accuracy"] == found["val"][i]
  assert rest["steps_seen"].tolist() == found["best_step"]


def test_where_the_time_goes_is_told_and_steps_can_be_traced(tmp_path, capsys):
  """In cost.json, on a line of the log, in the report; the traced run gives the same numbers."""
  assert harness.train(tmp_path, "--profile=5:8") == 0
  said = capsys.readouterr().out
  assert f"trace of steps 5 to 8 -> {tmp_path / 'profile'}" in said
  assert list(tmp_path.glob("profile/plugins/profile/*/*.xplane.pb"))
  found = json.loads((tmp_path / "cost.json").read_text())
  times = {name: found[f"{name}_s"] for name in (*watch.PHASES, "other")}
  assert all(value >= 0 for value in times.values()) and times["compute"] > 0 < times["checkpoint"]
  assert found["compile_count"] == 2 and found["peak_mb"] > 0 and found["steps_per_s"] > 0
  assert found["step_ms"] > 0 and found["mfu"] is None and found["padding_share"] is None
  assert "2 programs, peak" in said and "of the time data" in said
  assert report.main([str(tmp_path), "--out", str(tmp_path / "report.html")]) == 0
  page = (tmp_path / "report.html").read_text()
  assert all(f"<th>{name}</th>" in page for name in found)
  assert harness.train(tmp_path / "no", "--profile=8:5") == 2
  assert "--profile=8:5 cannot be used: write FIRST:LAST" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("which", "start", "cuts"),
  [("5:8", 0, [4, 8]), ("3", 0, [2, 3]), ("", 20, [30, 40]), ("2:3", 7, [])],
)
def test_calls_are_cut_where_a_trace_begins_and_ends(which, start, cuts, tmp_path, monkeypatch):
  began, ended = [], []
  monkeypatch.setattr(jax.profiler, "start_trace", lambda _: began.append(step))
  monkeypatch.setattr(jax.profiler, "stop_trace", lambda: ended.append(step))
  tracing, step, steps = Profile(which, tmp_path), start, 60
  tracing.start(step, steps)
  while step < steps:
    tracing.before(step)
    step += min(10, steps - step, tracing.steps_to_go(step) or 10)
    tracing.after(step, ())
  assert began + ended == cuts


def test_a_finished_run_says_so_and_stays(finished, capsys):
  before = (finished["full"] / "results.json").read_bytes()
  assert harness.train(finished["full"]) == 0
  assert "already finished: blobs mlp: test accuracy" in capsys.readouterr().out
  assert (finished["full"] / "results.json").read_bytes() == before


def test_the_same_command_gives_the_same_bits(finished, tmp_path):
  assert harness.train(tmp_path / "again", variant="stream") == 0
  harness.assert_same_run(tmp_path / "again", finished["stream"])


def test_seeds_one_after_the_other_find_what_they_find_together(finished, tmp_path):
  alone = tmp_path / "alone"
  assert harness.train(alone, "--config.train.seeds_together=False") == 0
  one, together = harness.results(alone), harness.results(finished["full"])
  assert one["test"] == together["test"] and one["best_step"] == together["best_step"]
  assert one["compile_count"] == 2  # the seeds share their programs
  by_step = {row["step"]: row for row in harness.rows(finished["full"])}
  found = harness.rows(alone)
  assert len(found) == 180
  for row in found:
    (seed,) = row["seeds"]
    np.testing.assert_allclose(row["loss"][0], by_step[row["step"]]["loss"][seed], rtol=1e-5)


def test_a_stream_compiles_once_per_shape(finished):
  found = harness.results(finished["stream"])
  assert found["compile_count"] == 3  # minibatches of two sizes, one eval batch
  assert [row["step"] for row in harness.rows(finished["stream"])] == list(range(1, 61))
  sizes = [row["counted"][0] for row in harness.rows(finished["stream"])]
  assert sizes[:4] == [32, 16, 16, 32]  # the dataset's order, whatever is read ahead


def test_cuts_of_the_run_change_no_bit(finished, tmp_path):
  """One program whatever the number of steps in a call: evaluation and saving cut as they like."""
  words = ("--config.train.steps_per_call=7", "--config.train.checkpoint_every=13")
  assert harness.train(tmp_path / "cut", *words) == 0
  harness.assert_same_run(tmp_path / "cut", finished["full"])
