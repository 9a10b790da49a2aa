"""Both workloads on meshes of data, fsdp and tensor: one curve, whatever holds the parameters."""

import json
import os
from pathlib import Path
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_problems import curves
from train_problems import harness

from h2g.errors import InputError
from h2g.train.loop import make_programs
from h2g.train.settings import complete
from h2g.train.settings import Settings
from h2g.train.sharding import Layout
from h2g.train.sharding import make_mesh
from h2g.train.step import seed_keys

FAST = {"text": ("1,1,1", "2,2,2", "1,4,1"), "graph": ("1,1,1", "2,2,2")}


def spawn(workload: str, *meshes: str) -> list[dict]:
  env = dict(
    os.environ,
    XLA_FLAGS="--xla_force_host_platform_device_count=8",
    PYTHONPATH=str(harness.ROOT),
    JAX_PLATFORMS="cpu",
  )
  done = subprocess.run(
    [sys.executable, str(Path(curves.__file__)), workload, *meshes],
    env=env,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return [json.loads(line) for line in done.stdout.splitlines()]


def assert_one_curve(found: list[dict]) -> None:
  assert found[0]["mesh"] == [1, 1, 1]
  for other in found[1:]:
    for name in ("loss", "grad_norm"):
      np.testing.assert_allclose(other[name], found[0][name], rtol=1e-5, err_msg=str(other["mesh"]))
    split = other["mesh"][1] * other["mesh"][2]
    assert other["share"] < (0.75 if split > 1 else 1.01), other  # sharded, moments too


@pytest.mark.parametrize("workload", FAST)
def test_meshes_give_one_curve(workload):
  assert_one_curve(spawn(workload, *FAST[workload]))


@pytest.mark.slow
@pytest.mark.parametrize("workload", ["text", "graph"])
def test_all_meshes_give_one_curve(workload):
  found = spawn(workload)
  assert len(found) == 20
  assert_one_curve(found)


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


def test_bfloat16_keeps_float32_state_and_the_old_state_is_given_away():
  experiment, config = curves.build("text", compute_dtype="bfloat16")
  settings = Settings.from_config(complete(config))
  mesh = make_mesh((("data", 1), ("fsdp", 2), ("tensor", 1)))
  layout = Layout(mesh, (0,), settings.rules, experiment.rows)
  programs = make_programs(experiment, settings, layout)
  state, _ = programs.create(seed_keys(layout.padded))
  batch = layout.place(next(iter(experiment.train_batches((0,)))))
  assert batch.own.addressable_shards[0].data.shape[1] == 8  # half of the examples
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
