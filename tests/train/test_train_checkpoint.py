"""A damaged checkpoint is told, set aside, and the one before it is used."""

import gc
from pathlib import Path
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from train_problems import blobs
from train_problems import harness

from h2g.errors import InputError
from h2g.train import Batch
from h2g.train import Experiment
from h2g.train.checkpoint import Checkpoints
from h2g.train.checkpoint import Record
from h2g.train.sharding import Layout
from h2g.train.sharding import make_mesh
from h2g.train.step import Programs
from h2g.train.step import seed_keys

# The reader's tasks that damage left unfinished complain when they are collected: here, not later.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collect_at_once():
  yield
  for _ in range(3):
    gc.collect()


MESH = (("data", 2), ("fsdp", 1), ("tensor", 1))


def open_checkpoints(folder, config_hash: str = "abc"):
  layout = Layout(make_mesh(MESH), (0, 1, 2))
  config = harness.get_config()
  config.hidden = 300  # arrays too large to stand in the index itself
  programs = Programs(blobs.build(config), optax.adam(1e-2), layout, length=1)
  return Checkpoints(folder, layout, programs.abstract, config_hash), programs, layout


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A folder with the checkpoints of steps 10 and 20 (of which only the number differs)."""
  folder = tmp_path_factory.mktemp("saved") / "group"
  checkpoints, programs, layout = open_checkpoints(folder)
  state, best = programs.create(seed_keys(layout.padded))
  for step in (5, 10, 20):
    state = state._replace(step=state.step + step - state.step)
    checkpoints.save(state, best, Record(step, [0.5, None, 0.25], [step, 0, 5], seconds=1.5))
  checkpoints.wait()
  checkpoints.close()
  assert sorted(path.name for path in folder.iterdir()) == ["10", "20"]  # 5 made room
  return folder


def files(folder: Path, pattern: str) -> list[Path]:
  found = [path for path in (folder / "20").rglob("*") if path.is_file() and path.match(pattern)]
  assert found, pattern
  return found


def truncate(path: Path) -> None:
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
  content = bytearray(path.read_bytes())
  for position in range(len(content) // 3, len(content), 101):
    content[position] ^= 0xFF
  path.write_bytes(bytes(content))


@pytest.mark.few(4)
@pytest.mark.parametrize(
  ("pattern", "damage"),
  [
    ("d/*", flip),
    ("state/d/*", truncate),
    ("best/d/*", Path.unlink),
    ("best/ocdbt.process_0/d/*", truncate),
    ("state/manifest.ocdbt", truncate),
    ("state/_METADATA", truncate),
    ("record/metadata", truncate),
    ("record/metadata", Path.unlink),
    ("_CHECKPOINT_METADATA", truncate),
  ],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(pattern, damage, saved, tmp_path, capsys):
  folder = tmp_path / "group"
  shutil.copytree(saved, folder)
  for path in files(folder, pattern):
    damage(path)
  checkpoints, *_ = open_checkpoints(folder)
  state, best, record = checkpoints.restore()
  if pattern == "_CHECKPOINT_METADATA" and record.step == 20:  # not needed to read the numbers
    return checkpoints.close()
  assert record == Record(10, [0.5, None, 0.25], [10, 0, 5], seconds=1.5)
  assert int(state.step) == 10
  said = capsys.readouterr().out
  assert f"warning: checkpoint {folder / '20'} is damaged" in said and "from step 10" in said
  assert (folder / "damaged-20").is_dir()
  # The step can be saved again where the damaged one stood.
  checkpoints.save(state._replace(step=state.step + 10), best, Record(20, [1.0] * 3, [20] * 3))
  checkpoints.close()
  checkpoints, *_ = open_checkpoints(folder)
  assert checkpoints.restore()[2].step == 20
  checkpoints.close()


def test_numbers_changed_on_the_way_are_noticed(saved, tmp_path, monkeypatch, capsys):
  """Damage that every reader lets pass, as a flipped bit of an uncompressed array would be."""
  from h2g.train import checkpoint

  folder = tmp_path / "group"
  shutil.copytree(saved, folder)
  checkpoints, *_ = open_checkpoints(folder)
  real = checkpoint.fingerprint
  calls = []

  def first_differs(tree):
    calls.append(1)
    found = real(tree)
    return [found[0] + 1, *found[1:]] if len(calls) == 1 else found

  monkeypatch.setattr(checkpoint, "fingerprint", first_differs)
  assert checkpoints.restore()[2].step == 10
  assert "not those that were saved" in capsys.readouterr().out
  checkpoints.close()


def test_the_fingerprint_sees_one_bit_of_any_dtype():
  from h2g.train.checkpoint import fingerprint

  for dtype in (jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint8, jnp.bool_):
    array = jnp.zeros((3, 5), dtype)
    other = array.at[1, 2].set(jnp.ones((), dtype))
    assert fingerprint({"a": array}) == [0] != fingerprint({"a": other}), dtype
  assert fingerprint({}) == []


def test_the_fingerprint_is_one_whether_the_host_or_the_devices_take_it(monkeypatch):
  from h2g.train.checkpoint import fingerprint

  drawn = jax.random.normal(jax.random.key(0), (33, 7))
  tree = {
    "single": drawn,
    "half": drawn.astype(jnp.bfloat16),
    "mask": drawn > 0,
    "number": jnp.float32(-3.0),
    "empty": jnp.zeros((0, 3)),
    "large": jnp.arange(9, dtype=jnp.uint32) * 10**9,  # its sum passes 2^32
    "byte": jnp.int8(-1),
  }
  host = fingerprint(tree)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert fingerprint(tree) == host


def test_when_nothing_can_be_read_the_run_does_not_start_over(saved, tmp_path):
  folder = tmp_path / "group"
  shutil.copytree(saved, folder)
  for step in ("10", "20"):
    shutil.rmtree(folder / step / "state")
  checkpoints, *_ = open_checkpoints(folder)
  with pytest.raises(InputError, match=r"no checkpoint in .* can be read .*remove that folder"):
    checkpoints.restore()
  checkpoints.close()
  assert (folder / "20").is_dir()  # nothing was set aside


def test_a_checkpoint_of_another_config_is_refused(saved):
  checkpoints, *_ = open_checkpoints(saved, config_hash="xyz")
  with pytest.raises(InputError, match=r"is of another config \(abc, not xyz\)"):
    checkpoints.restore()
  checkpoints.close()


def test_a_half_saved_checkpoint_is_as_if_it_were_not(saved, tmp_path, capsys):
  folder = tmp_path / "group"
  shutil.copytree(saved, folder)
  (folder / "20").rename(folder / "20.orbax-checkpoint-tmp")
  checkpoints, *_ = open_checkpoints(folder)
  assert checkpoints.restore()[2].step == 10
  assert "damaged" not in capsys.readouterr().out
  checkpoints.close()
  assert not (folder / "20.orbax-checkpoint-tmp").exists()


def test_an_experiment_without_other_state_and_with_bfloat16_is_saved(tmp_path):
  def build():
    return Experiment(
      dataset="d",
      model="m",
      metric="x",
      init=lambda key: ({"w": jax.random.normal(key, (3,), jnp.bfloat16), "none": None}, {}),
      loss=lambda params, rest, batch, key: (jnp.sum(params["w"]), (rest, {})),
      train_batches=lambda seeds: Batch((), np.zeros((len(seeds), 1), np.float32)),
      eval_batches=lambda seeds: (),
      evaluate=lambda params, rest, batch: (),
      summarise=lambda stats: {},
    )

  layout = Layout(make_mesh(MESH), (4,))
  programs = Programs(build(), optax.sgd(0.1), layout, length=1)
  state, best = programs.create(seed_keys(layout.padded))
  checkpoints = Checkpoints(tmp_path / "group", layout, programs.abstract, "h")
  checkpoints.save(state, best, Record(1, [None], [0]))
  checkpoints.close()
  checkpoints = Checkpoints(tmp_path / "group", layout, programs.abstract, "h")
  again, _, _ = checkpoints.restore()
  checkpoints.close()
  assert again.params["w"].dtype == jnp.bfloat16 and again.rest == {}
  assert np.asarray(again.params["w"]).tobytes() == np.asarray(state.params["w"]).tobytes()
