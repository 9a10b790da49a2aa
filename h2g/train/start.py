"""Where a run starts that goes on from another."""

from collections.abc import Callable
import json
from pathlib import Path
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp

from h2g.errors import InputError
from h2g.train.experiment import Experiment
from h2g.train.loop import restore_best
from h2g.train.step import seed_keys


def start_from(
  workdir: str | Path, build: Callable[[Any], Experiment], config
) -> Callable[[Array], Any]:
  """`key -> params`: those of the best validation of the same seed of a finished run.

  To be called in an `Experiment.init`: what a seed draws its first parameters from tells which
  seed it is.

  Args:
    workdir: of the run that is gone on from.
    build: that run's config -> its experiment; may refuse a config that does not fit.
    config: of the run that goes on.
  Raises:
    InputError: the folder holds no run, or one of other seeds.
  """
  try:
    before = json.loads((Path(workdir) / "config.json").read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise InputError(f"config.start.workdir={workdir} holds no run: give its folder") from error
  before = type(config)(before)
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
