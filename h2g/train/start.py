"""Where a run starts that goes on from another."""

from collections.abc import Callable
from collections.abc import Sequence
import json
from pathlib import Path
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
from ml_collections import ConfigDict

from h2g.errors import InputError
from h2g.train.experiment import Experiment
from h2g.train.loop import restore_best
from h2g.train.step import seed_keys


def config_of(workdir: str | Path) -> ConfigDict:
  """The config of a run from its folder, with tuples where JSON has lists; InputError without."""

  def with_tuples(value):
    if isinstance(value, dict):
      return {name: with_tuples(inside) for name, inside in value.items()}
    return tuple(map(with_tuples, value)) if isinstance(value, list) else value

  try:
    found = json.loads((Path(workdir) / "config.json").read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise InputError(f"config.start.workdir={workdir} holds no run: give its folder") from error
  return ConfigDict(with_tuples(found))


def start_from(
  workdir: str | Path,
  build: Callable[[Any], Experiment],
  config,
  besides: Sequence[str] = (),
) -> Callable[[Array], Any]:
  """`key -> params`: those of the best validation of the same seed of a finished run.

  To be called in an `Experiment.init`: what a seed draws its first parameters from tells which
  seed it is.

  Args:
    workdir: of the run that is gone on from.
    build: that run's config -> its experiment.
    config: of the run that goes on; its part `model` must have all values of the other's,
    besides: these names (what only one of them has).
  Raises:
    InputError: the folder holds no run, or one of another network or of other seeds.
  """
  before = config_of(workdir)
  for name, value in before.get("model", {}).items():
    if name not in besides and config.model.get(name) != value:
      raise InputError(
        f"config.start.workdir={workdir} has model.{name}={value!r}, this run "
        f"{config.model.get(name)!r}: go on with the same network"
      )
  params, _ = restore_best(build(before), before, workdir)
  seeds = tuple(range(config.seed, config.seed + config.num_seeds))
  if len(jax.tree.leaves(params)[0]) != len(seeds):
    raise InputError(
      f"config.start.workdir={workdir} has other seeds than this run: train them alike"
    )
  firsts = jax.vmap(lambda key: jax.random.key_data(jax.random.split(key)[0]))(seed_keys(seeds))

  def start(key: Array):
    row = (firsts == jax.random.key_data(key)[None]).all(1).argmax()
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[row], params)

  return start
