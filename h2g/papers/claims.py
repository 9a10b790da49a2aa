"""A claim as findings over trained variants."""

from collections.abc import Sequence
import functools
import importlib
import json
from pathlib import Path
import re
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from h2g.errors import InputError
from h2g.train import jobs


class Finding(NamedTuple):
  """One sentence of a claim.

  statement: what must hold, with its numbers.
  holds: whether it did.
  found: what came out.
  """

  statement: str
  holds: bool
  found: str

  @classmethod
  def compare(cls, name: str, value: float, at_least: float) -> "Finding":
    """`name` must be at least a number; NaN does not hold."""
    return cls(f"{name} >= {at_least:.4g}", bool(value >= at_least), f"{value:.4g}")

  @classmethod
  def at_most(cls, name: str, value: float, limit: float) -> "Finding":
    """`name` must be at most a number; NaN does not hold."""
    return cls(f"{name} <= {limit:.4g}", bool(value <= limit), f"{value:.4g}")

  @classmethod
  def above(cls, name: str, one: float, other: float) -> "Finding":
    """`name`, the difference of two numbers, must be positive; NaN does not hold."""
    return cls(f"{name} > 0", bool(one > other), f"{one - other:.4g} ({one:.4g}, {other:.4g})")


class Runs:
  """Trains variants of one paper's config, each once, in one work directory."""

  def __init__(
    self,
    slug: str,
    workdir: Path,
    *,
    seeds: int | None = None,
    at_once: int = 0,
    bar: bool = True,
  ):
    """Nothing is trained yet.

    Args:
      slug: of the paper.
      workdir: one folder per variant goes under it; what is finished there is not trained again.
      seeds: another number of seeds than the config's.
      at_once: most variants that `prepare` trains at a time; 0 for as many as there are cores.
      bar: progress bars.
    """
    self.slug, self.workdir, self._seeds, self._bar = slug, workdir, seeds, bar
    self._at_once = at_once
    self._found: dict[str, dict] = {}

  def config(self, variant: str):
    """The ConfigDict of a variant.

    A part of it that names another `variant` and a `workdir`, to be trained and restored there
    (an encoder that is probed), gets its folder here.
    """
    config = module(f"configs.{self.slug}").get_config(variant)
    if self._seeds:
      config.num_seeds = self._seeds
    for _, part in reads(config):
      part.workdir = str(self.folder(part.variant))
    return config

  def prepare(self, *variants: str) -> None:
    """Trains variants side by side, each a process with cores of its own; `results` finds them.

    Networks as small as these leave most cores idle when they train one after the other. The order
    is that of the starts: what takes longest first. Variants that one of them reads (see `config`)
    are trained before it. On an accelerator, which serves one process, nothing happens.
    """
    at_once = min(self._at_once or len(jobs.own_cores()), len(variants))
    if at_once > 1 and jax.default_backend() == "cpu":
      jobs.run(self._jobs(variants), at_once=at_once)

  def _jobs(self, variants: Sequence[str]) -> list[jobs.Job]:
    """Of those that are not finished; what others read stands first."""
    found: dict[str, jobs.Job] = {}

    def add(variant: str, *, seeds: int | None) -> Path:
      folder = self.folder(variant)
      done = variant in self._found or (folder / jobs.RESULTS).is_file()
      if done or variant in found:
        return folder
      options, after = [f"--config.num_seeds={seeds}"] if seeds else [], []
      for name, part in reads(self.config(variant)):
        after.append(add(part.variant, seeds=seeds if part.variant in variants else None))
        options.append(f"--config.{name}.workdir={part.workdir}")
      config = f"{module(f'configs.{self.slug}').__file__}:{variant}"
      found[variant] = jobs.Job(variant, config, folder, tuple(options), tuple(after))
      return folder

    for variant in variants:
      add(variant, seeds=self._seeds)
    return list(found.values())

  def folder(self, variant: str) -> Path:
    """Where a variant is trained."""
    return self.workdir / variant.replace("/", "_")

  def results(self, variant: str) -> dict:
    """What results.json of the variant holds (`test`: the metric of each seed)."""
    if variant not in self._found:
      from h2g import train

      config = self.config(variant)
      experiment = module(f"experiments.{self.slug}.experiment").build(config)
      self._found[variant] = train.run(experiment, config, self.folder(variant), bar=self._bar)
    return self._found[variant]

  def restore(self, variant: str):
    """(experiment, params, rest) of the trained variant, leaves [seeds, ...]."""
    from h2g import train

    self.results(variant)
    config = self.config(variant)
    experiment = module(f"experiments.{self.slug}.experiment").build(config)
    return experiment, *train.restore_best(experiment, config, self.folder(variant))

  def num_params(self, variant: str, pattern: str = "") -> int:
    """Parameters of one seed in whose path (`blocks/0/kernel`) the regular expression is found."""
    experiment = module(f"experiments.{self.slug}.experiment").build(self.config(variant))
    params, _ = jax.eval_shape(experiment.init, jax.random.key(0))
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(leaf.size for path, leaf in leaves if re.search(pattern, name(path)))

  def seeds(self, variant: str) -> list[tuple]:
    """(params, rest) of each seed of the trained variant."""
    _, *trained = self.restore(variant)
    num = len(jax.tree.leaves(trained)[0])
    return [jax.tree.map(lambda leaf, s=seed: leaf[s], tuple(trained)) for seed in range(num)]

  def metrics(self, variant: str) -> dict[str, float]:
    """Means over seeds of all that the variant was tested on (`test/pq`, `train/accuracy`)."""
    found = self.results(variant)["metrics"]
    return {name: float(np.mean([seed[name] for seed in found])) for name in found[0]}

  @functools.cache  # noqa: B019  (one object a process)
  def test(self, variant: str) -> np.ndarray:
    """[seeds] test metric of a variant."""
    return np.asarray(self.results(variant)["test"], np.float64)

  def mean(self, variant: str) -> float:
    """Mean test metric over seeds."""
    return float(self.test(variant).mean())

  def table(self) -> str:
    """A line of Markdown per variant trained so far: mean ± standard error."""
    lines = ["| variant | test | seeds |", "| --- | --- | --- |"]
    for variant in self._found:
      values = self.test(variant)
      error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
      lines.append(f"| {variant} | {values.mean():.4f} ± {error:.4f} | {len(values)} |")
    return "\n".join(lines)


def reads(config) -> list[tuple[str, Any]]:
  """(name, part) of a config's parts that name another `variant`, and the `workdir` it is in."""
  named = lambda part: hasattr(part, "items") and {"variant", "workdir"} <= set(part)
  return [(name, part) for name, part in config.items() if named(part) and part.variant]


def check(runs: Runs) -> list[Finding]:
  """Runs the paper's claim; the findings are also written to workdir/claim.json."""
  findings = module(f"experiments.{runs.slug}.claim").check(runs)
  if not findings:
    raise InputError(f"experiments/{runs.slug}/claim.py found nothing: a claim has sentences")
  runs.workdir.mkdir(parents=True, exist_ok=True)
  text = json.dumps([finding._asdict() for finding in findings], indent=2)
  (runs.workdir / "claim.json").write_text(text + "\n", encoding="utf-8")
  return findings


def module(name: str):
  """Imports a module of the repository; InputError where there is none."""
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as error:
    if error.name and f"{name}.".startswith(f"{error.name}."):
      raise InputError(f"there is no module {name}: run from the repository") from error
    raise
