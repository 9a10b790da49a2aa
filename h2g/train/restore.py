"""Parameters of a run, for another model, mesh or run: all of them or a part."""

from pathlib import Path
import re
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from h2g.errors import InputError
from h2g.train.checkpoint import differences
from h2g.train.checkpoint import fingerprint
from h2g.train.checkpoint import one_line
from h2g.train.checkpoint import path_of
from h2g.train.checkpoint import quiet_tasks
from h2g.train.checkpoint import shapes_of
from h2g.train.writers import say

ALL = 1000  # names in a message: nobody reads more


class Group(NamedTuple):
  """One folder of checkpoints and the seeds in it."""

  folder: Path
  seeds: tuple[int, ...]


def restore_params(
  workdir: str | Path,
  like: Any,
  *,
  seed: int | None = None,
  strict: bool = True,
  only: str = "",
  best: bool = True,
  step: int | None = None,
) -> Any:
  """The parameters of one seed of the run in `workdir`, in the structure of `like`.

  Neither the optimiser's state nor the run's config is read, so that `like` may be of another model
  than the run's: names (`blocks/0/kernel`) decide what goes where.

  Args:
    workdir: of a run that has saved at least once.
    like: pytree of arrays or ShapeDtypeStructs. Those with a sharding are read into it.
    seed: which; None: the run's first.
    strict: whether parameters that are missing in the run, unexpected or of another shape or dtype
      are an error. Otherwise they are told, and `like`'s own values stay.
    only: regular expression; paths without it are neither read nor compared, `like`'s values stay.
    best: the parameters of the seed's best validation so far, or those of the checkpoint's step.
    step: of the checkpoint; None: the newest that can be read.
  Returns:
    pytree like `like`.
  Raises:
    InputError: no checkpoint, no such seed, or parameters that differ: all of them, with shapes.
  """
  groups = groups_of(Path(workdir))
  seed = groups[0].seeds[0] if seed is None else seed
  return read_seeds(workdir, like, (seed,), strict=strict, only=only, best=best, step=step)


def read_seeds(
  workdir: str | Path,
  like: Any,
  seeds: tuple[int, ...],
  *,
  stacked: bool = False,
  strict: bool = True,
  only: str = "",
  best: bool = True,
  step: int | None = None,
) -> Any:
  """`restore_params` of several seeds; stacked: the leaves of `like` have a first axis of them."""
  groups = groups_of(Path(workdir))
  places = []
  for seed in seeds:
    place = next(((g, g.seeds.index(seed)) for g in groups if seed in g.seeds), None)
    if place is None:
      have = ", ".join(str(seed) for group in groups for seed in group.seeds)
      raise InputError(f"{workdir} holds no seed {seed}: it has {have}")
    places.append(place)
  of_one = lambda leaf: jax.ShapeDtypeStruct(leaf.shape[stacked:], leaf.dtype)
  paths = [(path_of(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(like)[0]]
  wanted = {name: leaf for name, leaf in paths if re.search(only, name)}
  shapes = shapes_of({name: of_one(leaf) for name, leaf in wanted.items()})
  shardings = {name: _sharding(leaf, stacked) for name, leaf in wanted.items()}
  item, rest = ("best" if best else "state"), dict(strict=strict, only=only, step=step)
  used = list(dict.fromkeys(group for group, _ in places))
  read = {group: _read(group, item, shapes, shardings, **rest) for group in used}

  new = {}
  for name in read[used[0]]:
    parts = tuple(read[group][name] for group in used)
    rows = tuple((used.index(group), row) for group, row in places)
    target = getattr(wanted[name], "sharding", None)
    target = target if isinstance(target, jax.sharding.Sharding) else None
    new[name] = jax.jit(_rows, static_argnums=(1, 2), out_shardings=target)(parts, rows, stacked)
  missing = [name for name, leaf in paths if name not in new and not hasattr(leaf, "__array__")]
  if missing:
    raise InputError(
      f"{workdir} gives no value for {', '.join(missing[:5])}, and `like` has none: give arrays"
    )
  leaves = [new.get(name, leaf) for name, leaf in paths]
  return jax.tree.unflatten(jax.tree.structure(like), leaves)


def groups_of(workdir: Path) -> list[Group]:
  """The run's groups of seeds; InputError where there is no checkpoint."""
  groups = []
  for folder in (workdir / "checkpoints").glob("*"):
    if match := re.fullmatch(r"seeds?_(\d+)(?:-(\d+))?", folder.name):
      first, last = int(match[1]), int(match[2] or match[1])
      if any(path.name.isdigit() for path in folder.iterdir()):
        groups.append(Group(folder.absolute(), tuple(range(first, last + 1))))
  if not groups:
    raise InputError(f"{workdir} holds no checkpoint: name the --workdir of a run that has saved")
  return sorted(groups, key=lambda group: group.seeds)


def _read(group: Group, item: str, shapes, shardings, *, strict, only, step) -> dict[str, Any]:
  """{name: [seeds of the group, ...]} of what the newest whole checkpoint has of `shapes`."""
  handlers = {name: ocp.PyTreeCheckpointHandler() for name in ("state", "best")}
  handlers["record"] = ocp.JsonCheckpointHandler()
  options = ocp.CheckpointManagerOptions(read_only=True)
  damaged = []
  with ocp.CheckpointManager(group.folder, options=options, item_handlers=handlers) as manager:
    steps = sorted(manager.all_steps(), reverse=True)
    if step is not None and step not in steps:
      have = ", ".join(map(str, reversed(steps)))
      raise InputError(f"{group.folder} holds no checkpoint of step {step}: it has {have}")
    for one in steps if step is None else [step]:
      try:
        found = _read_step(manager, one, item, shapes, shardings, strict, only)
      except InputError:
        raise
      except Exception as error:  # whatever the damage made the reader raise
        quiet_tasks()
        damaged.append(f"checkpoint {group.folder / str(one)} is damaged ({one_line(error)})")
        continue
      for line in damaged:
        say(f"warning: {line}; reading step {one}")
      return found
  raise InputError(f"{damaged[0]}: name another step or run")


def _read_step(manager, step: int, item: str, shapes, shardings, strict, only) -> dict[str, Any]:
  args = ocp.args.Composite(record=ocp.args.JsonRestore())
  host = manager.restore(step, args=args).record
  prefix = "params/"
  saved = {
    name.removeprefix(prefix): [kind, *shape[1:]]
    for name, (kind, *shape) in host["shapes"][item].items()
    if name.startswith(prefix) and re.search(only, name.removeprefix(prefix))
  }
  if differing := differences(saved, shapes, most=ALL):
    text = f"the parameters in {manager.directory / str(step)} are not those asked for"
    if strict:
      raise InputError(f"{text} ({differing}): ask for a part of them, or not strictly")
    say(f"warning: {text}, what agrees is taken ({differing})")
  taken = [name for name in shapes if saved.get(name) == shapes[name]]

  tree = manager.item_metadata(step)[item].tree
  count = next(iter(host["shapes"][item].values()))[1] if taken else 0

  def ask(path, _):
    name = path_of(path).removeprefix(prefix)
    if path_of(path).startswith(prefix) and name in taken:
      kind, *shape = shapes[name]
      return jax.ShapeDtypeStruct((count, *shape), jnp.dtype(kind), sharding=shardings[name])
    return ...

  asked = jax.tree_util.tree_map_with_path(ask, tree)
  how = jax.tree.map(
    lambda leaf: (
      ocp.RestoreArgs()
      if leaf is ...
      else ocp.ArrayRestoreArgs(sharding=leaf.sharding, dtype=leaf.dtype)
    ),
    asked,
  )
  args = ocp.args.Composite(**{item: ocp.args.PyTreeRestore(asked, restore_args=how)})
  read = manager.restore(step, args=args)[item]
  leaves = jax.tree_util.tree_flatten_with_path(read)[0]
  found = {path_of(path).removeprefix(prefix): leaf for path, leaf in leaves if leaf is not ...}
  position = {name: i for i, name in enumerate(host["shapes"][item])}
  for name, leaf in found.items():
    if fingerprint(leaf) != [host["fingerprint"][item][position[prefix + name]]]:
      raise ValueError(f"the numbers of {name!r} are not those that were saved")
  return found


def _rows(parts: tuple, rows: tuple[tuple[int, int], ...], stacked: bool):
  """Of several groups' leaves [seeds, ...] the (group, seed) asked for, stacked or the only one."""
  leaves = [parts[part][row] for part, row in rows]
  return jnp.stack(leaves) if stacked else leaves[0]


def _sharding(leaf, stacked: bool) -> jax.sharding.Sharding:
  """Where the saved leaf, with its first axis of seeds, is read to."""
  sharding = getattr(leaf, "sharding", None)
  if isinstance(sharding, jax.sharding.NamedSharding):
    spec = jax.sharding.PartitionSpec(None, *sharding.spec[stacked:])
    return jax.sharding.NamedSharding(sharding.mesh, spec)
  return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
