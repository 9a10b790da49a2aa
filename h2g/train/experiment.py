"""What the trainer asks of an experiment: functions over pytrees, nothing else."""

from collections.abc import Callable
from collections.abc import Iterable
import dataclasses
from pathlib import Path
from typing import Any
from typing import NamedTuple

import jax
from jax import Array
import numpy as np


class Batch(NamedTuple):
  """Data of one step.

  S is the number of seeds that train together.

  shared: pytree of arrays that every seed reads, without an axis of seeds.
  own: pytree of arrays [S, ...]: what differs between seeds (splits, samples). `Experiment.loss`
    and `evaluate` see one seed's slice of it.
  """

  shared: Any
  own: Any


def resident(shared: Any) -> Callable[[tuple[int, ...]], Batch]:
  """`seeds -> Batch` of arrays that stay on the device; seeds differ by their keys alone."""
  return lambda seeds: Batch(shared=shared, own=np.zeros((len(seeds), 1), np.float32))


def in_order(
  batches: Callable[[], Iterable[Any]], shared: Any = None
) -> Callable[[tuple[int, ...]], Callable[[], Iterable[Batch]]]:
  """For `Experiment.eval_batches`: what `batches()` yields, from its start at every evaluation.

  Args:
    batches: of pytrees of arrays [B, ...], which every seed reads alike.
    shared: of every batch.
  """

  def of(seeds: tuple[int, ...]):
    repeat = lambda x: np.broadcast_to(x, (len(seeds), *x.shape))
    return lambda: (Batch(shared, jax.tree.map(repeat, own)) for own in batches())

  return of


def rows_at_random(arrays: Any, num: int, key: Array) -> Any:
  """[num, ...] rows of every leaf [N, ...] of a pytree, the same of each, drawn and put back."""
  ids = jax.random.randint(key, (num,), 0, len(jax.tree.leaves(arrays)[0]))
  return jax.tree.map(lambda array: array[ids], arrays)


@dataclasses.dataclass(frozen=True)
class Experiment:
  """One task and one model, as functions of pytrees. The trainer maps them over seeds.

  dataset, model: names for the results.
  metric: name of the selection metric: `summarise` must return `val/<metric>` and `test/<metric>`.
  init: `key -> (params, rest)` for one seed: what is optimised, and the other state of the model.
  loss: `(params, rest, batch, key) -> (loss, (rest, metrics))`; loss a float32 scalar, metrics a
    dict of scalars. The key differs by seed and step.
  train_batches: `seeds -> Batch` that stays on the device for the whole run, or `seeds -> grain
    dataset of Batch` (any iterable whose iterator has `get_state` and `set_state` will do) that
    yields one batch a step, padded to a few shapes.
  eval_batches: `seeds -> Batch`, or a sequence of batches, or a function that returns an iterable;
    read from its start at every evaluation.
  evaluate: `(params, rest, batch) -> stats`: a pytree of arrays that add up over batches.
  summarise: `stats of one seed (NumPy, summed in float64) -> {name: float}`.
  report: `(stats of each seed, workdir)`: task-specific pictures, called once at the end.
  select: name of the summary that chooses the best step; None: `val/<metric>`. For a metric with
    many ties, such as accuracy on few nodes, one that breaks them.
  maximise: False where a smaller value of it is better (a loss, an error).
  rows: whether the leaves of a streamed `Batch.own` are [S, B, ...] with B independent examples
    over which the loss is a mean: then they are split over the mesh, and gradients may be
    accumulated.
  sequence: whether the leaves of a streamed `Batch.own` of three axes or more are [S, B, T, ...] of
    T positions: then these are split over the mesh axis `sequence`, where it divides T.
  unit, units_per_step: what speed is counted in, and how many of it a step of one seed reads.
  flops_per_step: multiply-adds times two of the model in a step of one seed, forward and backward.
  """

  dataset: str
  model: str
  metric: str
  init: Callable[[Array], tuple[Any, Any]]
  loss: Callable[[Any, Any, Batch, Array], tuple[Array, tuple[Any, dict[str, Array]]]]
  train_batches: Callable[[tuple[int, ...]], Any]
  eval_batches: Callable[[tuple[int, ...]], Any]
  evaluate: Callable[[Any, Any, Batch], Any]
  summarise: Callable[[Any], dict[str, float]]
  report: Callable[[list[Any], Path], None] | None = None
  select: str | None = None
  maximise: bool = True
  rows: bool = False
  sequence: bool = False
  unit: str = "steps"
  units_per_step: float = 1.0
  flops_per_step: float | None = None

  @property
  def selection(self) -> str:
    """Name of the summary that chooses the best step."""
    return self.select or f"val/{self.metric}"
