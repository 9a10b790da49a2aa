"""Checkpoints that are whole or absent, read back with the shardings of the run that asks.

A checkpoint is one committed folder of three items: `state` (what the next step needs), `best`
(each seed's model at its best validation) and `record` (host values: step, seconds, best metrics,
the position of the data). So every checkpoint holds the best so far, which can be read alone.
"""

import dataclasses
import logging
from pathlib import Path
import shutil
import time
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from h2g.errors import InputError
from h2g.train.sharding import Layout
from h2g.train.step import Best
from h2g.train.step import State
from h2g.train.workdir import cannot_write
from h2g.train.workdir import REASONS
from h2g.train.writers import is_first_process
from h2g.train.writers import say

SPARE = 1 << 20  # bytes that a save takes besides its arrays, generously

# Orbax prints the traceback of a failed save from each of its threads; it is raised to us as well.
# And it warns of what a reader asked for.
_TOLD = (
  "_SignalingThread",
  "background save thread",
  "Save Finalize thread",
  "Failed to json parse Metadata file",
  "read_only=True",
  "is read only=",
)
logging.getLogger("absl").addFilter(
  lambda record: not any(text in record.getMessage() for text in _TOLD)
)


class Unguarded(NamedTuple):
  """A State without its empty guard, as it stood on disk before there were guards."""

  params: Any
  rest: Any
  opt_state: Any
  keys: Any
  step: Any


def _slim(state: State) -> State | Unguarded:
  return Unguarded(*state[:-1]) if state.guard == () else state


@dataclasses.dataclass
class Record:
  """The host's part of a checkpoint; JSON.

  best_metric: [S] selection metric of each seed's best evaluation, None before the first.
  best_step: [S] its step. seconds: time trained so far. feed: state of the stream of batches.
  compiled: names of the programs compiled so far. times: seconds by phase, see `Watch`.
  passed_over: what was passed over since the start: {"step", "seed", "reason", "action"}, and "to"
    of a rollback. kept: [step, selection metric] of the checkpoints that stay as the best.
  """

  step: int
  best_metric: list[float | None]
  best_step: list[int]
  seconds: float = 0.0
  feed: Any = None
  compiled: list[str] = dataclasses.field(default_factory=list)
  times: dict[str, float] = dataclasses.field(default_factory=dict)
  passed_over: list[dict] = dataclasses.field(default_factory=list)
  kept: list[list] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Keep:
  """Which checkpoints stay when a newer one is saved.

  last: the newest so many; two, lest the newest is damaged. every: those of its multiples, 0 none.
  newest_of: the newest of its multiples, 0 none. steps: those.
  """

  last: int = 2
  every: int = 0
  newest_of: int = 0
  steps: frozenset[int] = frozenset()

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    """Orbax's question; `checkpoints` from the oldest to the newest."""
    del context
    found = [info.step for info in checkpoints]
    multiple = lambda step, of: of > 0 and step % of == 0
    regular = max((step for step in found if multiple(step, self.newest_of)), default=None)
    newest = sorted(found)[-self.last :]
    return [
      step in newest or step in self.steps or step == regular or multiple(step, self.every)
      for step in found
    ]


class Checkpoints:
  """Saves and restores one group of seeds in `folder`."""

  def __init__(
    self,
    folder: Path,
    layout: Layout,
    abstract: tuple[State, Best],
    config_hash: str,
    keep: Keep | None = None,
  ):
    self._keep = keep or Keep()
    self._folder = folder.absolute()
    self._form = SavedForm(layout, abstract)
    self._config_hash = config_hash
    self._shapes = {name: shapes_of(tree) for name, tree in self._form.abstract.items()}
    self._last: int | None = None
    options = ocp.CheckpointManagerOptions(
      preservation_policy=self._keep, cleanup_tmp_directories=True
    )
    with _disk_errors(self._folder):
      self._manager = ocp.CheckpointManager(
        self._folder, item_names=("state", "best", "record"), options=options
      )

  def save(self, state: State, best: Best, record: Record) -> None:
    """Starts a save; it is on disk, whole, after a later `wait` or `save` returns."""
    if record.step == self._last:
      return
    self._require_space()
    self._keep.steps = frozenset(step for step, _ in record.kept)
    state, best = self._form.pack((state, best))
    state = _slim(state)
    host = dataclasses.asdict(record) | {
      "config_hash": self._config_hash,
      "shapes": self._shapes,
      "fingerprint": {"state": fingerprint(state), "best": fingerprint(best)},
    }
    with _disk_errors(self._folder):
      self._manager.save(
        record.step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state),
          best=ocp.args.StandardSave(best),
          record=ocp.args.JsonSave(host),
        ),
        force=True,
      )
    self._last = record.step

  def wait(self) -> None:
    with _disk_errors(self._folder):
      self._manager.wait_until_finished()
      self._manager.check_for_errors()

  def restore(self) -> tuple[State, Best, Record] | None:
    """The latest checkpoint that can be read whole; None where there is none.

    A damaged one is told and set aside under `damaged-<step>`.

    Raises:
      InputError: there are checkpoints and none can be read, or they are of another config.
    """
    found = self._newest(("state", "best"))
    if found is None:
      return None
    (state, best), record = found
    self._last = record.step
    state, best = self._form.unpack((state, best))
    return state, best, record

  def restore_best(self) -> Best | None:
    """The best models alone."""
    found = self._newest(("best",))
    return None if found is None else found[0][0]

  def regular(self, before: int, every: int) -> State | None:
    """The state of the newest checkpoint at a multiple of `every` before step `before`.

    None where there is none: then it is the state of step 0. Later checkpoints stay.
    """
    self.wait()
    steps = [step for step in self._manager.all_steps() if step < before and step % every == 0]
    for step in sorted(steps, reverse=True):
      try:
        both, _ = self._read(step, ("state", "best"))
      except InputError:
        raise
      except Exception as error:
        quiet_tasks()
        say(f"warning: checkpoint {self._folder / str(step)} is damaged ({one_line(error)})")
        continue
      return self._form.unpack(both)[0]
    return None

  def close(self) -> None:
    """Ends the saves under way; nothing half-written stays."""
    try:
      with _disk_errors(self._folder):
        self._manager.close()
    finally:
      # The threads of a failed save may still be writing for a moment.
      for wait in (0.0, 0.1, 0.2, 0.4, 0.8):
        time.sleep(wait)
        halves = list(self._folder.glob("*.orbax-checkpoint-tmp")) if is_first_process() else []
        for half in halves:
          shutil.rmtree(half, ignore_errors=True)
        if not halves:
          break

  def _require_space(self) -> None:
    """A save that cannot fit is not begun."""
    leaves = jax.tree.leaves(self._form.abstract)
    needed = SPARE + sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    free = shutil.disk_usage(self._folder).free
    if free < needed:
      raise InputError(
        f"cannot write to {self._folder}: No space left on device (a checkpoint takes up to "
        f"{needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free); make room, then run the same "
        "command"
      )

  def _newest(self, items: tuple[str, ...]):
    damaged: dict[int, str] = {}
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        found = self._read(step, items)
      except InputError:
        raise
      except Exception as error:  # whatever the damage made the reader raise
        quiet_tasks()
        damaged[step] = one_line(error)
        continue
      for bad, reason in damaged.items():
        say(
          f"warning: checkpoint {self._folder / str(bad)} is damaged ({reason}); "
          f"going on from step {step}"
        )
        if is_first_process():
          (self._folder / str(bad)).rename(self._folder / f"damaged-{bad}")
      if damaged:
        self._manager.reload()
      return found
    if damaged:
      step, reason = next(iter(damaged.items()))
      raise InputError(
        f"no checkpoint in {self._folder} can be read (step {step}: {reason}): remove that "
        "folder to train from the start"
      )
    return None

  def _read(self, step: int, items: tuple[str, ...]):
    only_record = ocp.args.Composite(record=ocp.args.JsonRestore())
    host = self._manager.restore(step, args=only_record).record
    if host["config_hash"] != self._config_hash:
      raise InputError(
        f"checkpoint {self._folder / str(step)} is of another config ({host['config_hash']}, not "
        f"{self._config_hash}): choose another --workdir, or remove this one"
      )
    for name in items:
      if differing := differences(host.get("shapes", self._shapes)[name], self._shapes[name]):
        raise InputError(
          f"checkpoint {self._folder / str(step)} is of another model ({differing}): train in "
          "another --workdir, or with the code that wrote it"
        )
    args = {name: ocp.args.StandardRestore(self._form.abstract[name]) for name in items}
    found = self._manager.restore(step, args=ocp.args.Composite(**args))
    for name in items:
      if fingerprint(found[name]) != host["fingerprint"][name]:
        raise ValueError(f"the numbers of {name!r} are not those that were saved")
    names = [field.name for field in dataclasses.fields(Record)]
    record = Record(**{name: host[name] for name in names if name in host})  # younger fields lack
    whole = lambda name: State(*found[name]) if name == "state" else found[name]
    return tuple(whole(name) for name in items), record


class SavedForm:
  """How a group's state stands on disk: real seeds only, random keys as numbers.

  So a run saved on eight devices, whose seeds were padded to eight, is read on one.
  abstract: {"state", "best"}: ShapeDtypeStructs of the saved form with the shardings to read into.
  """

  def __init__(self, layout: Layout, abstract: tuple[State, Best]):
    real, padded = len(layout.seeds), len(layout.padded)
    rows = np.arange(padded) % real

    def per_seed(function, both):
      state, best = both
      step = state.step
      state, best = jax.tree.map(function, (state._replace(step=()), best))
      return state._replace(step=step), best

    def pack(both):
      return per_seed(lambda leaf: _raw(leaf[:real]), both)

    def unpack(both):
      like = jax.tree.map(lambda leaf: leaf, abstract)
      wrap = lambda leaf, old: jax.random.wrap_key_data(leaf) if _is_key(old) else leaf
      state, best = per_seed(lambda leaf: leaf[rows], both)
      return jax.tree.map(wrap, (state, best), like)

    def saved_sharding(leaf):
      if padded == real or leaf.ndim == 0:
        return leaf.sharding
      axes = leaf.sharding.spec[1:]
      return jax.sharding.NamedSharding(layout.mesh, jax.sharding.PartitionSpec(None, *axes))

    same = padded == real and not any(map(_is_key, jax.tree.leaves(abstract)))
    saved = jax.tree.map(saved_sharding, abstract)
    target = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    shapes = jax.eval_shape(pack, abstract)
    with_sharding = lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    )
    state, best = jax.tree.map(with_sharding, shapes, saved)
    self.abstract = {"state": _slim(state), "best": best}
    self.pack = (lambda both: both) if same else jax.jit(pack, out_shardings=saved)
    self.unpack = (lambda both: both) if same else jax.jit(unpack, out_shardings=target)


def fingerprint(tree) -> list[int]:
  """A number per leaf that a damaged file would not give back, exact on any number of devices.

  Of each leaf the sum of its bits, taken as unsigned numbers, modulo 2^32.
  """
  leaves = jax.tree.leaves(tree)
  if jax.default_backend() == "cpu" and jax.process_count() == 1:
    # The same where a leaf lies already: a program of many small sums takes seconds to compile.
    return [int(_sum_of_bits(np, np.asarray(leaf))) for leaf in leaves]
  return jax.device_get(_sums(leaves)).tolist() if leaves else []


@jax.jit
def _sums(leaves):
  return jnp.stack([_sum_of_bits(jnp, leaf) for leaf in leaves])


def _sum_of_bits(numpy, leaf):
  """uint32 []; numpy: np or jnp, whose array `leaf` is."""
  if leaf.dtype == bool:
    return numpy.sum(leaf, dtype=numpy.uint32)
  words = leaf.reshape(-1).view(f"uint{8 * min(leaf.dtype.itemsize, 4)}")
  return numpy.sum(words, dtype=numpy.uint32)


def shapes_of(tree) -> dict[str, list]:
  """{path: [dtype, *shape]} of every leaf; JSON."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {path_of(path): [str(leaf.dtype), *leaf.shape] for path, leaf in leaves}


def path_of(path) -> str:
  """blocks/0/kernel"""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def differences(saved: dict[str, list], wanted: dict[str, list], most: int = 5) -> str:
  """What is missing from `saved`, not expected in it, and of another shape; "" where they agree.

  saved, wanted: of `shapes_of`. most: names told of each kind.
  """
  text = lambda of, name: f"{name} {of[name][0]}{of[name][1:]}"
  kinds = {
    "missing": [text(wanted, name) for name in wanted if name not in saved],
    "unexpected": [text(saved, name) for name in saved if name not in wanted],
    "mismatched": [
      f"{text(saved, name)}, now {wanted[name][0]}{wanted[name][1:]}"
      for name in wanted
      if name in saved and saved[name] != wanted[name]
    ],
  }
  more = lambda found: f" and {len(found) - most} more" if len(found) > most else ""
  return "; ".join(
    f"{kind}: {', '.join(found[:most])}{more(found)}" for kind, found in kinds.items() if found
  )


def one_line(error: BaseException) -> str:
  return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _is_key(leaf) -> bool:
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _raw(leaf):
  return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def quiet_tasks() -> None:
  """After a failure the other tasks of the same save or restore would each print theirs."""
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)


class _disk_errors:
  """Turns what a full or read-only disk makes of a save into one line; other errors pass."""

  def __init__(self, folder: Path):
    self._folder = folder

  def __enter__(self):
    return self

  def __exit__(self, kind, error, _):
    if error is None or isinstance(error, InputError):
      return
    if any(reason.lower() in str(error).lower() for reason in REASONS):
      quiet_tasks()
      raise cannot_write(self._folder, error) from error
