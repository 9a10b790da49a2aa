"""Both workloads on meshes of data, fsdp and tensor: one curve, whatever holds the parameters."""

import json
import os
from pathlib import Path
import subprocess
import sys

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest
from train_problems import blobs
from train_problems import curves
from train_problems import harness

from h2g.errors import InputError
from h2g.train.checkpoint import differences
from h2g.train.loop import make_programs
from h2g.train.settings import complete
from h2g.train.settings import Settings
from h2g.train.sharding import Layout
from h2g.train.sharding import make_mesh
from h2g.train.step import seed_keys

FAST = {"text": ("1,1,1", "1,1,2,2,2"), "graph": ("1,1,1", "2,2,2")}


def spawn(workload: str, *meshes: str) -> list[dict]:
  return [json.loads(line) for line in script("curves.py", workload, *meshes)]


def script(name: str, *words: str) -> list[str]:
  """Lines that a script of train_problems prints on eight devices."""
  env = dict(
    os.environ,
    XLA_FLAGS="--xla_force_host_platform_device_count=8",
    PYTHONPATH=str(harness.ROOT),
    JAX_PLATFORMS="cpu",
  )
  done = subprocess.run(
    [sys.executable, str(Path(curves.__file__).with_name(name)), *words],
    env=env,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout.splitlines()


def assert_one_curve(found: list[dict]) -> None:
  assert found[0]["mesh"] == [1, 1, 1]
  for other in found[1:]:
    for name in ("loss", "grad_norm"):
      np.testing.assert_allclose(other[name], found[0][name], rtol=1e-5, err_msg=str(other["mesh"]))
    assert min(other["grad_norm"]) > 0.5, "or nothing was clipped"
    split = np.prod(other["mesh"][1:3]) * np.prod(other["mesh"][4:])
    assert other["share"] < (0.75 if split > 1 else 1.01), other  # sharded, moments too


@pytest.mark.few("text")
@pytest.mark.parametrize("workload", FAST)
def test_meshes_give_one_curve(workload):
  assert_one_curve(spawn(workload, *FAST[workload]))


@pytest.mark.slow
@pytest.mark.parametrize("workload", ["text", "graph"])
def test_all_meshes_give_one_curve(workload):
  found = spawn(workload)
  assert len(found) == (25 if workload == "text" else 20)
  assert_one_curve(found)


@pytest.mark.slow
def test_accumulated_gradients_are_those_of_the_whole_batch():
  one = curves.curve(*curves.build("text"), (1, 1, 1))
  parts = curves.curve(*curves.build("text", accumulate=4), (2, 1, 1))
  for name in ("loss", "grad_norm"):
    np.testing.assert_allclose(parts[name], one[name], rtol=1e-5)
  with pytest.raises(InputError, match="accumulate=3 does not divide the 16 examples"):
    curves.curve(*curves.build("text", accumulate=3), (1, 1, 1))
  half = curves.curve(*curves.build("text", compute_dtype="bfloat16"), (1, 1, 1))
  np.testing.assert_allclose(half["loss"], one["loss"], rtol=1e-2)
  assert half["loss"] != one["loss"]


@pytest.mark.slow
def test_bfloat16_keeps_float32_state_and_the_old_state_is_given_away():
  experiment, config = curves.build("text", compute_dtype="bfloat16")
  settings = Settings.from_config(complete(config))
  mesh = make_mesh((("data", 1), ("fsdp", 2), ("tensor", 1)))
  layout = Layout(mesh, (0,), settings.rules, experiment.rows)
  programs = make_programs(experiment, settings, layout)
  state, _ = programs.create(seed_keys(layout.padded))
  batch = layout.place(next(iter(experiment.train_batches((0,)))))
  assert batch.own["tokens"].addressable_shards[0].data.shape[1] == 8  # half of the examples
  text = programs.step.lower(state, batch).as_text()
  assert "bf16" in text
  new, _ = programs.step(state, batch)
  for leaf in jax.tree.leaves((new.params, new.opt_state)):
    assert leaf.dtype in (jnp.float32, jnp.int32)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_parts_of_a_batch_that_has_no_rows_are_refused():
  from experiments.h2gb.experiment import build

  config = curves.graph_config(accumulate=2)
  config.sample.method = ""
  settings = Settings.from_config(complete(config))
  layout = Layout(make_mesh((("data", 1), ("fsdp", 1), ("tensor", 1))), (0,))
  with pytest.raises(InputError, match=r"accumulate=2: the batches of h2g_former have no rows"):
    make_programs(build(config), settings, layout)


def test_saved_on_eight_devices_and_read_on_four_and_one(tmp_path):
  found = script("other_mesh.py", str(tmp_path / "checkpoints"))
  assert found == ["(1, 1, 4)", "(4, 1, 1)", "(1, 1, 1)"]


@pytest.mark.smoke
def test_a_changed_model_is_told_name_by_name():
  saved = {"params/a": ["float32", 2, 3], "params/b": ["float32", 4]}
  wanted = {"params/a": ["float32", 2, 5], "params/c": ["float32", 4]}
  assert differences(saved, wanted) == (
    "missing: params/c float32[4]; unexpected: params/b float32[4]; "
    "mismatched: params/a float32[2, 3], now float32[2, 5]"
  )
  assert differences(saved, saved) == ""
  many = {f"p{i}": ["float32"] for i in range(8)}
  assert differences({}, many).endswith("p4 float32[] and 3 more")


def test_a_run_of_a_changed_model_is_refused_and_left_whole(tmp_path, monkeypatch, capsys):
  build = blobs.build
  assert harness.train(tmp_path, "--config.nan_at=33") == 3  # leaves a checkpoint of step 20

  def changed(config):
    config = ConfigDict(config.to_dict())
    config.hidden = 24
    return build(config)

  monkeypatch.setattr(blobs, "build", changed)
  capsys.readouterr()
  assert harness.train(tmp_path, "--config.nan_at=33") == 2
  said = capsys.readouterr().err
  assert (
    "is of another model (mismatched: params/in/bias float32[3, 16], now float32[3, 24]" in said
  )
  assert not list(tmp_path.rglob("damaged-*"))
