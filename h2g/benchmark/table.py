"""What came out of a benchmark: means, ranks, and which differences are real.

Axes: D data sets, M models, S seeds.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from h2g.benchmark.grid import Cell
from h2g.train import jobs

LEVEL = 0.05  # of every test


class Score(NamedTuple):
  """One cell of the table.

  Attributes:
    metric: name of the metric, "" where the run failed.
    test: [S] test value of each seed; empty where it failed.
    seeds: the seeds.
    step_ms, peak_mb: see `h2g.train`'s cost.json; None where unknown.
    failure: why there is no value, "" where there is.
  """

  metric: str
  test: tuple[float, ...]
  seeds: tuple[int, ...]
  step_ms: float | None
  peak_mb: float | None
  failure: str = ""

  @property
  def mean(self) -> float:
    """NaN where the run failed."""
    return float(np.mean(self.test)) if self.test else float("nan")

  @property
  def std(self) -> float:
    """Of a sample (n - 1); 0 of a single seed."""
    return float(np.std(self.test, ddof=1)) if len(self.test) > 1 else 0.0


class Table(NamedTuple):
  """All cells.

  Attributes:
    datasets, models: names, in the order of the command line.
    scores: {(dataset, model): Score}.
  """

  datasets: tuple[str, ...]
  models: tuple[str, ...]
  scores: dict[tuple[str, str], Score]

  def means(self) -> np.ndarray:
    """[D, M] mean test values, NaN where a run failed."""
    return np.array([[self.scores[d, m].mean for m in self.models] for d in self.datasets])

  def ranks(self) -> np.ndarray:
    """[D, M] ranks on each data set, 1 the best, ties shared; a failed run comes last."""
    means = np.nan_to_num(self.means(), nan=-np.inf)
    return np.stack([stats.rankdata(-row, method="average") for row in means])

  def mean_ranks(self) -> np.ndarray:
    """[M] mean rank over the data sets."""
    return self.ranks().mean(0)

  def as_good_as_best(self, dataset: str) -> set[str]:
    """Models that a paired test over the seeds cannot tell from the best one.

    One-sided paired t-tests of the best mean against each other model on the same seeds (which
    share their splits), Holm's correction over them. With one seed nothing can be told.
    """
    scores = {m: self.scores[dataset, m] for m in self.models if self.scores[dataset, m].test}
    if not scores:
      return set()
    best = max(scores, key=lambda m: scores[m].mean)
    values = {}
    for model, score in scores.items():
      if model == best:
        continue
      difference = np.subtract(scores[best].test, score.test)
      if len(difference) < 2:
        values[model] = 1.0
      elif np.ptp(difference) == 0:  # the test divides by its spread
        values[model] = 0.0 if difference[0] > 0 else 1.0
      else:
        found = stats.ttest_rel(scores[best].test, score.test, alternative="greater")
        values[model] = float(found.pvalue)
    worse = set()
    for n, (model, value) in enumerate(sorted(values.items(), key=lambda item: item[1])):
      if value * (len(values) - n) > LEVEL:
        break
      worse.add(model)
    return set(scores) - worse

  def friedman(self) -> float | None:
    """p of Friedman's test that all models rank alike; None below 3 data sets or models."""
    if min(len(self.datasets), len(self.models)) < 3:
      return None
    ranks = self.ranks()
    if np.ptp(ranks) == 0:
      return 1.0
    return float(stats.friedmanchisquare(*ranks.T).pvalue)

  def critical_difference(self) -> float | None:
    """Nemenyi's critical difference of mean ranks, CD = q sqrt(M (M + 1) / (6 D)).

    q is the studentised range's quantile over sqrt(2) (Demsar 2006, eq. 8). Mean ranks that differ
    by less are not told apart by these data sets. None below 2 data sets or models.
    """
    count, blocks = len(self.models), len(self.datasets)
    if count < 2 or blocks < 2:
      return None
    quantile = stats.studentized_range.ppf(1 - LEVEL, count, np.inf) / np.sqrt(2)
    return float(quantile * np.sqrt(count * (count + 1) / (6 * blocks)))


def collect(cells: list[Cell], workdir: Path) -> Table:
  """The table of what is there so far; a run that is missing says so."""
  datasets = tuple(dict.fromkeys(cell.dataset for cell in cells))
  models = tuple(dict.fromkeys(cell.model for cell in cells))
  return Table(datasets, models, {(c.dataset, c.model): _score(c.folder(workdir)) for c in cells})


def _score(folder: Path) -> Score:
  found, failure = jobs.outcome(folder)
  if found is None:
    return Score("", (), (), None, None, failure)
  cost = jobs.read(folder / "cost.json") or {}
  return Score(
    found["metric"],
    tuple(found["test"]),
    tuple(found["seeds"]),
    cost.get("step_ms"),
    cost.get("peak_mb"),
  )
