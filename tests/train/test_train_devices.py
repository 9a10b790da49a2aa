"""The same run on other devices: the same curve, parameters where the rules put them."""

import jax
from jax.sharding import PartitionSpec
import numpy as np
import pytest
from train_problems import blobs
from train_problems import harness

from h2g.errors import InputError
from h2g.train.settings import complete
from h2g.train.settings import Settings
from h2g.train.sharding import Layout
from h2g.train.sharding import make_mesh
from h2g.train.step import Programs
from h2g.train.step import seed_keys


@pytest.mark.slow
def test_one_four_and_eight_devices_give_the_same_curve(tmp_path):
  """The command line with three seeds: padded to four and to eight."""
  runs = {devices: harness.spawn(tmp_path / str(devices), devices=devices) for devices in (1, 4, 8)}
  for devices, process in runs.items():
    _, error = process.communicate()
    assert process.returncode == 0, error
    assert "warning" not in error.lower(), (devices, error)
  one = harness.rows(tmp_path / "1")
  for devices in (4, 8):
    for row, other in zip(one, harness.rows(tmp_path / str(devices)), strict=True):
      assert row["seeds"] == other["seeds"] == [0, 1, 2]
      np.testing.assert_allclose(row["loss"], other["loss"], rtol=1e-5)
  found = [harness.results(tmp_path / str(devices)) for devices in (1, 4, 8)]
  assert found[0]["test"] == found[1]["test"] == found[2]["test"]
  assert found[0]["config_hash"] == found[2]["config_hash"]


def programs_of(seeds: tuple[int, ...], rules=(), **mesh) -> tuple[Programs, Layout]:
  import optax

  mesh = make_mesh(tuple(({"data": 1, "fsdp": 1, "tensor": 1} | mesh).items()))
  layout = Layout(mesh, seeds, rules)
  experiment = blobs.build(harness.get_config())
  return Programs(experiment, optax.adam(1e-2), layout, length=5), layout


RULES = (("in/kernel", (None, "fsdp")), ("bias", ("fsdp",)), ("kernel", ("fsdp",)))


def test_rules_lay_parameters_and_their_moments():
  """Created where they belong, kept there by the step; the first rule that matches counts."""
  programs, layout = programs_of((0,), RULES, fsdp=2)
  state, best = programs.create(seed_keys(layout.padded))
  batch = layout.place(blobs.build(harness.get_config()).train_batches((0,)))
  curves = []
  for _ in range(2):
    params, adam = state.params, state.opt_state[0]
    for tree in (params, adam.mu, adam.nu, best.params):
      assert tree["in"]["kernel"].sharding.spec == PartitionSpec(None, None, "fsdp")
      assert tree["in"]["kernel"].addressable_shards[0].data.shape == (1, 8, 8)
      assert tree["out"]["kernel"].sharding.spec == PartitionSpec(None, "fsdp")
      assert tree["in"]["bias"].sharding.spec == PartitionSpec(None, "fsdp")
    state, metrics = programs.steps(state, batch, np.int32(5))
    curves.append(np.asarray(metrics["loss"])[:, 0])
  assert int(state.step) == 10

  alone, layout = programs_of((0,))
  state, _ = alone.create(seed_keys(layout.padded))
  batch = layout.place(blobs.build(harness.get_config()).train_batches((0,)))
  for curve in curves:
    state, metrics = alone.steps(state, batch, np.int32(5))
    np.testing.assert_allclose(curve, np.asarray(metrics["loss"])[:, 0], rtol=1e-5)


def test_seeds_side_by_side_need_no_communication():
  """A seed's step runs whole on one device: only its metrics are gathered, after the loop."""
  programs, layout = programs_of((0, 1), data=2)
  state, _ = programs.create(seed_keys(layout.padded))
  batch = layout.place(blobs.build(harness.get_config()).train_batches((0, 1)))
  text = programs.steps.lower(state, batch, np.int32(5)).compile().as_text()
  inner, entry = text.split("\nENTRY ")
  assert " while(" in entry and " all-gather(" in entry
  for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
    assert f" {word}" not in inner, word


def test_rules_that_cannot_be_followed_are_refused():
  with pytest.raises(InputError, match=r"out/kernel of shape \(16, 3\) cannot be split over the 2"):
    programs_of((0,), (("kernel", (None, "fsdp")),), fsdp=2)
  with pytest.raises(InputError, match="more axes than parameter in/bias"):
    programs_of((0,), (("bias", (None, "fsdp")),), fsdp=2)
  with pytest.raises(InputError, match="'data', which holds the seeds"):
    programs_of((0, 1), (("bias", ("data",)),), data=2)


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, 3, 1), (-1, -1, 1), (0, 1, 1), (4, 1, 1)])
def test_a_mesh_that_does_not_fit_is_refused(sizes):
  assert len(jax.devices()) == 2
  with pytest.raises(InputError, match=r"config.mesh \(data=.*(fit 2|sizes are >= 1)"):
    make_mesh(tuple(zip(("data", "fsdp", "tensor"), sizes)))


def test_padding_repeats_seeds_and_a_single_seed_is_not_padded():
  mesh = make_mesh((("data", 2), ("fsdp", 1), ("tensor", 1)))
  assert Layout(mesh, (5, 6, 7)).padded == (5, 6, 7, 5)
  assert Layout(mesh, (5, 6)).padded == (5, 6)
  assert Layout(mesh, (5,)).padded == (5,)


def test_a_leaf_without_the_axis_of_seeds_is_named():
  mesh = make_mesh((("data", 2), ("fsdp", 1), ("tensor", 1)))
  batch = blobs.build(harness.get_config()).train_batches((0, 1, 2))
  with pytest.raises(InputError, match=r"batch.own/.* has shape \(3, 240\).*4 seeds"):
    Layout(mesh, (0, 1, 2)).place(batch)


def test_the_config_says_mesh_and_rules():
  config = complete(harness.get_config())
  config.mesh.fsdp = 2
  config.sharding_rules = (("kernel", (None, "fsdp")),)
  settings = Settings.from_config(config)
  assert dict(settings.mesh) == {"data": -1, "fsdp": 2, "tensor": 1}
  assert settings.rules == (("kernel", (None, "fsdp")),)
