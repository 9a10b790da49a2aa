"""Which runs a benchmark has: every chosen model on every chosen data set."""

import difflib
import importlib.util
from pathlib import Path
import sys
from typing import NamedTuple

from h2g.errors import InputError
from h2g.train.jobs import Job


class Grid(NamedTuple):
  """What a config file offers to a benchmark, by its module constants.

  Attributes:
    config: path of the file.
    datasets: names for `dataset=NAME` (`BENCHMARK["datasets"]`).
    models: {name: what the variant says of it, such as `model=sgc,view=1hop`}
      (`BENCHMARK["models"]`).
    presets: the variants that take both (`BENCHMARK["presets"]`), the first by default.
    published: path of a CSV with published numbers beside the file, or None.
    more: data sets that may be named, and that "all" leaves out (`BENCHMARK["more"]`).
  """

  config: Path
  datasets: tuple[str, ...]
  models: dict[str, str]
  presets: tuple[str, ...]
  published: Path | None
  more: tuple[str, ...] = ()

  @classmethod
  def of(cls, path: str | Path) -> "Grid":
    """Reads the constants of a config file.

    Raises:
      InputError: no such file, or it has no `BENCHMARK`.
    """
    path = Path(path)
    if not path.is_file():
      raise InputError(f"--config {path} cannot be read: there is no such file")
    root = str(path.absolute().parent.parent)  # the folder of `configs`
    if root not in sys.path:
      sys.path.append(root)
    spec = importlib.util.spec_from_file_location("h2g_benchmark_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    offered = getattr(module, "BENCHMARK", None)
    if offered is None:
      raise InputError(f"--config {path} has no BENCHMARK: name one with models and datasets")
    published = offered.get("published")
    return cls(
      path,
      tuple(offered["datasets"]),
      dict(offered["models"]),
      tuple(offered["presets"]),
      None if published is None else Path(root) / published,
      tuple(offered.get("more", ())),
    )


class Cell(NamedTuple):
  """One run: a data set, a model, and the command line's config that says so."""

  dataset: str
  model: str
  variant: str

  def folder(self, workdir: Path) -> Path:
    """Where its run lives."""
    return workdir / self.dataset / self.model

  def job(self, config: Path, workdir: Path, options: tuple[str, ...]) -> Job:
    """The run as a command of the trainer."""
    name = f"{self.dataset} {self.model}"
    return Job(name, f"{config}:{self.variant}", self.folder(workdir), options)


def cells(grid: Grid, *, datasets: str, models: str, preset: str) -> list[Cell]:
  """The runs, one data set after the other.

  Args:
    grid: what there is.
    datasets, models: names separated by commas, or "all".
    preset: name of a preset, "" for the first.
  Raises:
    InputError: a name that there is not; the message lists what there is.
  """
  preset = _chosen("--preset", preset or grid.presets[0], grid.presets)[0]
  return [
    Cell(dataset, model, f"{preset},dataset={dataset},{grid.models[model]}")
    for dataset in _chosen("--datasets", datasets, grid.datasets, grid.more)
    for model in _chosen("--models", models, tuple(grid.models))
  ]


def _chosen(
  flag: str, names: str, known: tuple[str, ...], more: tuple[str, ...] = ()
) -> tuple[str, ...]:
  if names == "all":
    return known
  known = known + more
  chosen = tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
  if not chosen:
    raise InputError(f"{flag} is empty: give names, or all; there are {', '.join(known)}")
  for name in chosen:
    if name not in known:
      close = difflib.get_close_matches(name, known, 1)
      hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
      raise InputError(f"{flag} {name} is unknown: {hint}")
  return chosen
