"""Settings, schedules, feeds, pictures and the cache of programs, each alone."""

import dataclasses
import importlib
import json
import os
import sys
import types
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_problems import harness

from h2g.errors import InputError
from h2g.train import Batch
from h2g.train import compilation
from h2g.train import plots
from h2g.train import writers
from h2g.train.feed import EvalFeed
from h2g.train.feed import train_feed
from h2g.train.optimizer import make_optimizer
from h2g.train.optimizer import make_schedule
from h2g.train.settings import complete
from h2g.train.settings import Settings
from h2g.train.sharding import Layout
from h2g.train.sharding import make_mesh
from h2g.train.workdir import config_hash
from h2g.train.workdir import write_whole
from h2g.train.workdir import YOUNGER
from h2g.train.writers import MetricsLog


def layout(seeds=(0, 1)) -> Layout:
  return Layout(make_mesh((("data", 2), ("fsdp", 1), ("tensor", 1))), seeds)


def test_settings_name_what_they_refuse():
  config = complete(harness.get_config())
  assert Settings.from_config(config).seeds == (0, 1, 2)
  config.train.stepz = 3
  with pytest.raises(InputError, match=r"config.train.stepz .* did you mean steps\?"):
    Settings.from_config(config)
  config = complete(harness.get_config())
  config.train = {"steps": True}
  with pytest.raises(InputError, match=r"config\.train\.steps=True is a bool: use a int"):
    Settings.from_config(config)
  config.train = {"lr": 1}  # a whole number is a learning rate too
  assert Settings.from_config(config).lr == 1.0


def test_checkpoints_are_ten_a_run_unless_told():
  assert Settings(steps=55).steps_between_checkpoints == 5
  assert Settings(steps=3).steps_between_checkpoints == 1
  assert Settings(steps=55, checkpoint_every=7).steps_between_checkpoints == 7


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_schedules_rise_to_the_peak_and_fall_to_zero(name):
  schedule = make_schedule(Settings(steps=100, warmup=10, lr=0.5, schedule=name))
  rates = np.array([schedule(step) for step in range(101)])
  np.testing.assert_allclose(rates[:10], 0.05 * np.arange(1, 11), rtol=1e-6)
  assert np.argmax(rates) in (9, 10) and np.isclose(rates.max(), 0.5)
  assert np.all(np.diff(rates[10:]) <= 1e-9)
  assert rates[100] == (0.5 if name == "constant" else 0.0)


@pytest.mark.parametrize("name", ["adamw", "adam", "lion", "sgd"])
def test_only_matrices_decay(name):
  settings = Settings(optimizer=name, lr=0.1, weight_decay=0.5, schedule="constant")
  params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
  zeros = jax.tree.map(jnp.zeros_like, params)
  with jax.numpy_dtype_promotion("standard"):
    for decay, moves in (("matrices", False), ("all", True)):
      optimizer = make_optimizer(dataclasses.replace(settings, decay=decay))
      updates, _ = optimizer.update(zeros, optimizer.init(params), params)
      assert float(updates["kernel"][0, 0]) < 0
      assert (float(updates["bias"][0]) < 0) == moves


def test_lars_by_hand():
  """The rate stands outside the momentum, and vectors and zeros have no trust ratio."""
  settings = Settings(optimizer="lars", lr=0.5, steps=4, schedule="linear", weight_decay=0.1)
  optimizer = make_optimizer(settings)
  rng = np.random.default_rng(0)
  names = {"matrix": (2, 3), "zero": (2, 2), "bias": (3,)}
  p = {name: rng.normal(size=shape) * (name != "zero") for name, shape in names.items()}
  mine, momentum = {k: v.copy() for k, v in p.items()}, dict.fromkeys(p, 0.0)
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), p)
  state = optimizer.init(params)
  for step in range(3):
    grads = {name: rng.normal(size=shape) for name, shape in names.items()}
    with jax.numpy_dtype_promotion("standard"):
      given = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), grads)
      updates, state = optimizer.update(given, state, params)
    params = jax.tree.map(jnp.add, params, updates)
    for name, g in grads.items():
      if name != "bias":
        g = g + 0.1 * mine[name]
        sizes = np.linalg.norm(mine[name]), np.linalg.norm(g)
        g = g * (0.001 * sizes[0] / sizes[1] if min(sizes) > 0 else 1.0)
      momentum[name] = 0.9 * momentum[name] + g
      mine[name] = mine[name] - 0.5 * (1 - step / 4) * momentum[name]
      np.testing.assert_allclose(params[name], mine[name], rtol=1e-5, atol=1e-6)


def test_gradients_are_clipped_by_their_global_norm():
  settings = Settings(optimizer="sgd", momentum=0.0, lr=1.0, schedule="constant", clip_norm=1.0)
  optimizer = make_optimizer(settings)
  params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
  grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
  with jax.numpy_dtype_promotion("standard"):
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
  np.testing.assert_allclose(updates["a"], [-0.6, 0.0], rtol=1e-6)
  np.testing.assert_allclose(updates["b"], [-0.8], rtol=1e-6)


def test_rates_by_path():
  """The first pattern found decides; one that is found nowhere is a mistake."""
  rates = (("^backbone/", 0.1), ("bias", 2.0))
  common = dict(optimizer="adamw", weight_decay=0.5, schedule="constant")
  ones = jnp.ones((2, 2))
  params = {"backbone": {"bias": ones}, "head": {"bias": ones, "kernel": ones}}
  step = lambda o: o.update(params, o.init(params), params)[0]
  with jax.numpy_dtype_promotion("standard"):
    plain = step(make_optimizer(Settings(**common)))
    scaled = step(make_optimizer(Settings(**common, rates=rates)))
    with pytest.raises(InputError, match="'bakbone' is found in no parameter's path"):
      step(make_optimizer(Settings(rates=(("bakbone", 0.1),))))
  np.testing.assert_allclose(scaled["backbone"]["bias"], 0.1 * plain["backbone"]["bias"], rtol=1e-6)
  np.testing.assert_allclose(scaled["head"]["bias"], 2 * plain["head"]["bias"], rtol=1e-6)
  np.testing.assert_array_equal(scaled["head"]["kernel"], plain["head"]["kernel"])


def dataset(count: int = 7):
  import grain

  make = lambda i: Batch((), {"x": np.full((2, 3), i, np.float32)})
  return grain.MapDataset.range(count).map(make)


def values(feed, count: int) -> list[float]:
  return [float(feed.next().own["x"][0, 0]) for _ in range(count)]


@pytest.mark.parametrize("as_iterable", [False, True])
def test_a_stream_goes_on_after_the_batch_that_was_used(as_iterable):
  """Whatever had been read ahead."""
  source = dataset().to_iter_dataset() if as_iterable else dataset()
  feed = train_feed(source, layout(), state=None, ahead=3)
  assert feed.state is None and values(feed, 3) == [0.0, 1.0, 2.0]
  again = train_feed(source, layout(), state=feed.state, ahead=1)
  assert values(again, 4) == values(feed, 4) == [3.0, 4.0, 5.0, 6.0]
  with pytest.raises(InputError, match="ended before the run: repeat the dataset"):
    feed.next()


def test_streams_that_cannot_be_used_are_refused():
  with pytest.raises(InputError, match=r"list.* has no get_state"):
    train_feed([Batch((), ())], layout(), state=None, ahead=1)
  import grain

  wrong = train_feed(grain.MapDataset.range(3), layout(), state=None, ahead=1)
  with pytest.raises(InputError, match=r"yielded .*int.*: it must yield h2g.train.Batch"):
    wrong.next()


def test_evaluation_reads_its_batches_from_the_start_each_time():
  batch = lambda i: Batch((), {"x": np.full((2, 3), i, np.float32)})
  many = [batch(0), batch(1)]
  for source, expected in (
    (batch(5), [5.0]),
    (many, [0.0, 1.0]),
    (lambda: iter(many), [0.0, 1.0]),
    (dataset(2), [0, 1]),
  ):
    feed = EvalFeed(source, layout())
    for _ in range(2):
      assert [float(b.own["x"][0, 0]) for b in feed] == expected


def test_the_config_hash_ignores_what_changes_no_number():
  config = complete(harness.get_config()).to_dict()
  before = config_hash(config)
  config["mesh"]["data"] = 4
  config["train"]["checkpoint_every"] = 1
  assert config_hash(config) == before
  config["train"]["lr"] = 1.0
  assert config_hash(config) != before


def test_a_file_is_replaced_whole_or_stays(tmp_path, monkeypatch):
  path = tmp_path / "results.json"
  write_whole(path, b"old")

  def fail(_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "fsync", fail)
  with pytest.raises(OSError, match="No space"):
    write_whole(path, b"new")
  assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_pictures_are_drawn_without_a_display(tmp_path):
  matrix = np.array([[5, 1], [0, 4]])
  plots.confusion(matrix, ("a", "b"), tmp_path / "confusion.png")
  plots.curves([], tmp_path / "empty.png", metric="accuracy", title="nothing yet")
  for name in ("confusion.png", "empty.png"):
    assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_programs_that_a_kill_left_half_written_are_dropped(tmp_path):
  whole = zlib.compress(bytes(range(256)))
  (tmp_path / "whole-cache").write_bytes(whole)
  (tmp_path / "half-cache").write_bytes(whole[: len(whole) // 2])
  (tmp_path / "empty-cache").write_bytes(b"")
  compilation._drop_damaged(tmp_path)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["checked", "whole-cache"]
  # Older entries are not read again, newer ones are.
  (tmp_path / "whole-cache").write_bytes(whole[:50])
  os.utime(tmp_path / "whole-cache", (1, 1))
  (tmp_path / "new-cache").write_bytes(whole[:50])
  compilation._drop_damaged(tmp_path)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["checked", "whole-cache"]


@pytest.mark.slow
def test_programs_from_the_cache_give_the_same_numbers(finished, tmp_path, cache_home):
  """In a process of its own, with the programs that this process compiled and kept."""
  assert list((cache_home / "h2g").glob("*/jit_steps*-cache"))
  process = harness.spawn(tmp_path / "run")
  _, error = process.communicate()
  assert process.returncode == 0, error
  harness.assert_same_run(tmp_path / "run", finished["full"])


class FakeRun:
  def __init__(self, told, fail):
    self._told, self._fail = told, fail

  def log(self, values, step):
    if self._fail == step:
      raise ConnectionError("no network")
    self._told.append((step, values))

  def finish(self):
    self._told.append("finish")


@pytest.mark.parametrize("fail", [0, 3])
def test_weights_and_biases_are_told_where_there_is_an_account(fail, tmp_path, monkeypatch, capsys):
  """By a stand-in for the package; what goes wrong there costs the run nothing."""
  told, asked = [], []
  init = lambda **how: asked.append(how) or FakeRun(told, fail)
  monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
  for name in ("WANDB_API_KEY", "WANDB_MODE"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("HOME", str(tmp_path))
  for project in ("auto", "mine"):  # without an account, auto asks for none
    log = MetricsLog(tmp_path, (0, 1), from_step=0, wandb=project, config={"lr": 1})
    for step in range(1, 5):
      log.write({"step": step, "loss": [1.0, float("nan") if step == 2 else 2.0], "seconds": 0.1})
    log.close()
  (how,) = asked
  assert how["project"] == "mine" and how["config"] == {"lr": 1} and how["resume"] == "allow"
  if fail:
    assert told == [(1, {"loss": 1.5}), (2, {"loss": 1.0})]
    assert capsys.readouterr().out == (
      "warning: Weights & Biases is left out from here (ConnectionError: no network)\n"
    )
  else:
    assert [one[0] for one in told[:-1]] == [1, 2, 3, 4] and told[-1] == "finish"
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert len(rows) == 4 and rows[1]["loss"] == [1.0, None]
  monkeypatch.setenv("WANDB_API_KEY", "x")
  MetricsLog(tmp_path, (0, 1), from_step=0, wandb="auto").close()
  assert asked[-1]["project"] == "h2g"
  monkeypatch.delitem(sys.modules, "wandb")
  with pytest.raises(InputError, match="wandb='mine': the package wandb is not installed"):
    MetricsLog(tmp_path, (0, 1), from_step=0, wandb="mine")


def test_a_mesh_has_the_axes_that_are_asked_for():
  config = complete(harness.get_config())
  assert config.mesh.expert == config.mesh.sequence == 1
  assert [axis for axis, _ in Settings.from_config(config).mesh] == ["data", "fsdp", "tensor"]
  config.mesh.sequence = 2
  config.mesh.pipe = 1
  with pytest.raises(InputError, match=r"config.mesh.pipe=1 .* no rule names it; the axes are dat"):
    Settings.from_config(config)
  config.sharding_rules = (("kernel", ("pipe", "expert")),)
  found = dict(Settings.from_config(config).mesh)
  assert found == {"data": -1, "fsdp": 1, "tensor": 1, "sequence": 2, "pipe": 1, "expert": 1}
  config.sharding_rules = (("kernel", ("pipe", "expret")),)
  with pytest.raises(InputError, match=r"sharding_rules\['kernel'\]=expret cannot be used"):
    Settings.from_config(config)


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("on_divergence", "ignore", "choose from stop, skip, rollback"),
    ("spike_factor", 0.5, "use a factor > 1, or 0"),
    ("keep_every", 30, "a checkpoint is saved every 20 steps: use a multiple"),
    ("init_only", "(", r"init_only='\(' is no pattern"),
    ("rates", (("backbone", -1.0),), "use pairs like"),
    ("keep_last", 0, "use a number >= 1"),
  ],
)
def test_settings_that_cannot_be(name, value, message):
  config = complete(harness.get_config())
  config.train[name] = value
  with pytest.raises(InputError, match=message):
    Settings.from_config(config)


def test_younger_settings_do_not_end_older_runs():
  """The hash of a config without them is that of a config with their defaults."""
  new = complete(harness.get_config()).to_dict()
  old = {**new, "train": {k: v for k, v in new["train"].items() if f"train.{k}" not in YOUNGER}}
  assert len(old["train"]) < len(new["train"]) and config_hash(old) == config_hash(new)
  new["train"]["on_divergence"] = "rollback"
  assert config_hash(old) != (rolling := config_hash(new))
  new["train"]["checkpoint_every"] = 1  # where a rollback leads to
  assert config_hash(new) != rolling


def test_a_package_is_hidden_only_while_it_would_be_loaded_for_nothing(monkeypatch):
  monkeypatch.delitem(sys.modules, "this", raising=False)
  with writers._hidden("this"), pytest.raises(ImportError):
    importlib.import_module("this")
  assert "this" not in sys.modules
  with writers._hidden("json"):  # loaded already: left alone
    assert importlib.import_module("json") is sys.modules["json"]
  assert sys.modules["json"] is not None
