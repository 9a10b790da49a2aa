"""Training: a pure step over pytrees, its devices, its checkpoints and its command line.

An `Experiment` says what is trained; `run` trains it in a work directory, to the end or to where it
was stopped, and returns what `results.json` holds. Nothing here knows a model or a graph.
"""

from h2g.train.experiment import Batch
from h2g.train.experiment import Experiment
from h2g.train.experiment import in_order
from h2g.train.experiment import resident
from h2g.train.experiment import rows_at_random
from h2g.train.tasks import classification
from h2g.train.tasks import mean_loss

__all__ = [
  "Batch",
  "Experiment",
  "classification",
  "in_order",
  "mean_loss",
  "resident",
  "restore_best",
  "restore_params",
  "rows_at_random",
  "run",
  "start_from",
]


def run(experiment: Experiment, config, workdir, **kwargs) -> dict:
  """Trains `experiment` as `config` says; see `h2g.train.loop.run`."""
  from h2g.train import loop  # orbax and its friends load only where something is trained

  return loop.run(experiment, config, workdir, **kwargs)


def restore_best(experiment: Experiment, config, workdir):
  """(params, rest) of the best validation step of each seed; see `h2g.train.loop.restore_best`."""
  from h2g.train import loop

  return loop.restore_best(experiment, config, workdir)


def start_from(workdir, build, config, **kwargs):
  """`key -> params` of the same seed of a finished run; see `h2g.train.start.start_from`."""
  from h2g.train import start

  return start.start_from(workdir, build, config, **kwargs)


def restore_params(workdir, like, **kwargs):
  """Parameters of a run in the structure of `like`; see `h2g.train.restore.restore_params`."""
  from h2g.train import restore

  return restore.restore_params(workdir, like, **kwargs)
