"""Parameters of a run for another model, mesh or run; which checkpoints stay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_problems import harness

from h2g.errors import InputError
from h2g.train import restore_params

LIKE = {"w": jnp.zeros(4), "b": jnp.zeros(())}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """Two seeds, trained together; steps 10 and 30 stay as multiples, 40 and 35 as the newest."""
  folder = tmp_path_factory.mktemp("restore") / "run"
  words = ("--config.train.keep_every=10", "--config.train.keep_best=1")
  assert harness.train(folder, *words, config="faulty", variant="") == 0
  return folder


def steps(folder) -> list[int]:
  return sorted(int(path.name) for path in folder.glob("checkpoints/*/*") if path.name.isdigit())


def test_the_last_every_and_the_best_stay(run, tmp_path):
  assert steps(run) == [10, 20, 30, 35, 40]
  words = ("--config.train.keep_best=2", "--config.train.keep_last=1", "--config.train.lr=0.5")
  assert harness.train(tmp_path / "a", *words, config="faulty", variant="") == 0
  loss = {
    r["step"]: np.mean(r["val/loss"]) for r in harness.rows(tmp_path / "a") if "val/loss" in r
  }
  best = sorted(sorted(loss, key=loss.get)[:2])
  assert best != [30, 40], "or this would not tell the best from the newest"
  assert steps(tmp_path / "a") == sorted({*best, 40})
  with pytest.raises(InputError, match="holds no checkpoint of step 15: it has 10, 20, 30, 35, 40"):
    restore_params(run, LIKE, step=15)


def test_parameters_alone_of_any_seed_and_step(run):
  state = harness.final_state(run)
  for seed in (0, 1):
    found = restore_params(run, LIKE, seed=seed, best=False)
    for name in LIKE:
      np.testing.assert_array_equal(
        found[name], state[f"seeds_0-1 state['params']['{name}']"][seed]
      )
  struct = jax.eval_shape(lambda: LIKE)
  best = restore_params(run, struct)
  np.testing.assert_array_equal(best["w"], state["seeds_0-1 best['params']['w']"][0])
  early = restore_params(run, struct, step=10, best=False)
  assert not np.array_equal(early["w"], best["w"])
  with pytest.raises(InputError, match="holds no seed 7: it has 0, 1"):
    restore_params(run, LIKE, seed=7)
  with pytest.raises(InputError, match="holds no checkpoint: name the --workdir"):
    restore_params(run / "none", LIKE)


def test_parameters_are_read_to_where_they_belong(run):
  mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
  like = {"w": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=split), "b": LIKE["b"]}
  found = restore_params(run, like)
  assert found["w"].sharding == split
  np.testing.assert_array_equal(found["w"], restore_params(run, LIKE)["w"])


def test_what_differs_is_listed_and_a_part_can_be_had(run, capsys):
  ones = {"w": jnp.ones(5), "b": jnp.ones(()), "head": {"kernel": jnp.ones((2, 3))}}
  with pytest.raises(InputError) as error:
    restore_params(run, ones)
  assert "(missing: head/kernel float32[2, 3]; mismatched: w float32[4], now float32[5])" in str(
    error.value
  )
  found = restore_params(run, ones, strict=False)
  assert "warning: the parameters in" in (said := capsys.readouterr().out)
  assert "what agrees is taken (missing: head/kernel" in said
  np.testing.assert_array_equal(found["w"], np.ones(5))
  np.testing.assert_array_equal(found["head"]["kernel"], np.ones((2, 3)))
  np.testing.assert_array_equal(found["b"], restore_params(run, LIKE)["b"])
  part = restore_params(run, ones, only="^b$")  # strictly: nothing else is asked for
  assert part["b"] == found["b"] and part["w"].shape == (5,)
  with pytest.raises(InputError, match=r"unexpected: w float32\[4\]"):
    restore_params(run, {"b": jnp.ones(())})
  with pytest.raises(InputError, match="gives no value for head/kernel"):
    restore_params(run, jax.eval_shape(lambda: ones), strict=False)
  with pytest.raises(InputError, match=r"mismatched: b float32\[\], now bfloat16\[\]"):
    restore_params(run, {"w": LIKE["w"], "b": jnp.zeros((), jnp.bfloat16)})


def test_a_damaged_checkpoint_gives_way_here_too(run, tmp_path, capsys):
  import shutil

  shutil.copytree(run, tmp_path / "run")
  (tmp_path / "run" / "checkpoints" / "seeds_0-1" / "40" / "record" / "metadata").write_text("{")
  found = restore_params(tmp_path / "run", LIKE, best=False)
  assert "40 is damaged" in (said := capsys.readouterr().out) and "reading step 35" in said
  np.testing.assert_array_equal(found["w"], restore_params(run, LIKE, best=False, step=35)["w"])


def test_a_run_starts_from_the_parameters_of_another(run, tmp_path, capsys):
  words = (f"--config.train.init_from={run}", "--config.train.lr=0.0", "--config.train.steps=5")
  assert harness.train(tmp_path / "both", *words, config="faulty", variant="") == 0
  assert f"parameters from {run}" in capsys.readouterr().out
  state = harness.final_state(tmp_path / "both")["seeds_0-1 state['params']['w']"]
  for seed in (0, 1):
    np.testing.assert_array_equal(state[seed], restore_params(run, LIKE, seed=seed)["w"])
  part = (*words, "--config.train.init_only=b")
  assert harness.train(tmp_path / "part", *part, config="faulty", variant="") == 0
  state = harness.final_state(tmp_path / "part")
  assert not np.array_equal(
    state["seeds_0-1 state['params']['w']"][0], restore_params(run, LIKE)["w"]
  )
  assert state["seeds_0-1 state['params']['b']"][0] == restore_params(run, LIKE)["b"]
  more = (*words, "--config.num_seeds=3")
  assert harness.train(tmp_path / "more", *more, config="faulty", variant="") == 2
  assert "holds no seed 2: it has 0, 1" in capsys.readouterr().err
