"""The loop, in running order: claim, build, restore, train, evaluate, save, report."""

import collections
import contextlib
from pathlib import Path
import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from h2g.errors import InputError
from h2g.train import plots
from h2g.train import processes
from h2g.train.checkpoint import Checkpoints
from h2g.train.checkpoint import Record
from h2g.train.compilation import enable_compilation_cache
from h2g.train.experiment import Experiment
from h2g.train.feed import EvalFeed
from h2g.train.feed import train_feed
from h2g.train.optimizer import make_optimizer
from h2g.train.results import cost
from h2g.train.results import results
from h2g.train.results import SeedResult
from h2g.train.results import summary
from h2g.train.settings import complete
from h2g.train.settings import Settings
from h2g.train.sharding import Layout
from h2g.train.sharding import make_mesh
from h2g.train.step import Best
from h2g.train.step import Programs
from h2g.train.step import seed_keys
from h2g.train.step import State
from h2g.train.stops import Diverged
from h2g.train.stops import Interruption
from h2g.train.workdir import cannot_write
from h2g.train.workdir import Workdir
from h2g.train.writers import is_first_process
from h2g.train.writers import MetricsLog
from h2g.train.writers import Progress
from h2g.train.writers import read_rows
from h2g.train.writers import say


def run(experiment: Experiment, config, workdir: str | Path, *, bar: bool = True) -> dict:
  """Trains to the last step, from the last checkpoint where there is one.

  The same config gives the same numbers however often the run was stopped. A finished run is not
  trained again.

  Args:
    experiment: what is trained.
    config: ConfigDict, see `Settings` for what is read of it; the whole of it names the run.
    workdir: directory of the run; one config each.
    bar: a progress bar where stderr is a terminal; otherwise a line now and then.
  Returns:
    The content of results.json.
  Raises:
    InputError: the config, the directory or the disk cannot be used.
    Diverged: a loss is not a number. Preempted: told to stop by a signal, and saved.
  """
  config = complete(config)
  folder = Workdir(workdir, config)
  folder.check()
  if done := folder.results():
    say(f"already finished: {summary(done)} -> {folder.path / 'results.json'}")
    return done
  settings = Settings.from_config(config)
  enable_compilation_cache(settings.compilation_cache)
  with Interruption() as interruption:
    trainer = Trainer(experiment, settings, folder, make_mesh(settings.mesh), interruption, bar)
    try:
      for seeds in settings.groups:
        trainer.train(seeds)
      return trainer.finish()
    except OSError as error:
      raise cannot_write(folder.path, error) from error


def restore_best(experiment: Experiment, config, workdir: str | Path):
  """(params, rest) of each seed's best validation step, leaves [seeds, ...], on one device.

  Raises:
    InputError: the directory holds another config, or no checkpoint.
  """
  config = complete(config)
  folder = Workdir(workdir, config)
  folder.check()
  settings = Settings.from_config(config)
  mesh = make_mesh(tuple((axis, 1) for axis, _ in settings.mesh))
  parts = []
  for seeds in settings.groups:
    layout = Layout(mesh, seeds)
    programs = make_programs(experiment, settings, layout)
    if not _checkpoint_folder(folder, seeds).is_dir():
      raise InputError(f"{folder.path} holds no checkpoint of seeds {seeds}: train first")
    with _checkpoints(folder, layout, programs) as checkpoints:
      best = checkpoints.restore_best()
    if best is None:
      raise InputError(f"{folder.path} holds no checkpoint of seeds {seeds}: train first")
    parts.append(best)
  best = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
  return best.params, best.rest


def make_programs(experiment: Experiment, settings: Settings, layout: Layout) -> Programs:
  """The programs that the settings ask for."""
  return Programs(
    experiment,
    make_optimizer(settings),
    layout,
    length=settings.steps_per_call,
    accumulate=settings.accumulate,
    compute_dtype=settings.compute_dtype,
  )


class Trainer:
  """One run: its groups of seeds one after the other, then its results."""

  def __init__(
    self,
    experiment: Experiment,
    settings: Settings,
    folder: Workdir,
    mesh: Mesh,
    interruption: Interruption,
    bar: bool,
  ):
    self._experiment, self._settings, self._folder = experiment, settings, folder
    self._mesh, self._interruption, self._bar = mesh, interruption, bar
    # Groups have one size, so the programs of the first serve all.
    self._programs = make_programs(experiment, settings, self._layout(settings.groups[0]))
    self._found: list[SeedResult] = []
    self._compiled: set[str] = set()
    self._seconds = 0.0
    self._step_seconds: list[float] = []  # of calls that compiled nothing

  def train(self, seeds: tuple[int, ...]) -> None:
    """Trains one group to its last step, or finds it there, and keeps its results."""
    layout = self._layout(seeds)
    if processes.any_of(self._interruption.received is not None):
      raise self._interruption.preempted(f"stopped before seed {seeds[0]}")
    # What cannot be read has written nothing yet.
    evals = EvalFeed(self._experiment.eval_batches(layout.padded), layout)
    batches = self._experiment.train_batches(layout.padded)
    if is_first_process():
      self._folder.open()
    with _checkpoints(self._folder, layout, self._programs) as checkpoints:
      # State: read back, or made on the devices where it will live.
      restored = checkpoints.restore()
      if restored is None:
        state, best = self._programs.create(seed_keys(layout.padded))
        record = Record(0, [None] * len(seeds), [0] * len(seeds))
      else:
        state, best, record = restored
      self._compiled |= set(record.compiled)
      if record.step < self._settings.steps:
        if record.step:
          say(f"going on from step {record.step} of {self._settings.steps}{self._which(seeds)}")
        best = self._fit(layout, batches, evals, checkpoints, state, best, record)
      # The end of a group is on disk before the next begins.
      checkpoints.wait()
    stats = self._evaluate(best.params, best.rest, evals, len(seeds))
    self._compiled |= self._programs.compiled
    self._seconds += record.seconds
    for seed, step, one in zip(seeds, record.best_step, stats):
      self._found.append(SeedResult(seed, step, self._summarise(one), one))

  def _fit(
    self,
    layout: Layout,
    batches,
    evals: EvalFeed,
    checkpoints: Checkpoints,
    state: State,
    best: Best,
    record: Record,
  ) -> Best:
    """Trains from `record.step` to the last step; the record follows."""
    settings, programs, seeds = self._settings, self._programs, layout.seeds
    feed = train_feed(batches, layout, state=record.feed, ahead=settings.prefetch)
    began, before = time.monotonic(), record.seconds
    calls: collections.deque = collections.deque()  # whose metrics are still on the device
    with contextlib.ExitStack() as stack:
      log = MetricsLog(self._folder.path, seeds, from_step=record.step)
      stack.callback(log.close)
      progress = Progress(
        f"{self._experiment.model}{self._which(seeds)}",
        f"val/{self._experiment.metric}",
        start=record.step,
        steps=settings.steps,
        bar=self._bar,
      )
      stack.callback(progress.close)

      while record.step < settings.steps:
        # One call, cut where something is due.
        batch = feed.next()
        before_call, programs_known = time.monotonic(), len(programs.compiled)
        if feed.resident:
          count = self._steps_to_go(record.step)
          state, metrics = programs.steps(state, batch, np.int32(count))
        else:
          count = 1
          state, metrics = programs.step(state, batch)
        calls.append((record.step, count, metrics))
        record.step += count
        record.seconds = before + time.monotonic() - began
        last = record.step == settings.steps
        stopping = self._stopping(record.step, count)
        evaluating = last or record.step % settings.eval_every == 0
        saving = last or stopping or record.step % settings.steps_between_checkpoints == 0

        # Metrics are read one call late, while the device works on the next; or now, if due.
        rows = []
        while len(calls) > (0 if evaluating or saving else 1):
          rows += _rows(*calls.popleft(), seeds)
        if rows and len(programs.compiled) == programs_known:
          self._step_seconds.append((time.monotonic() - before_call) / len(rows))

        if evaluating:
          stats = self._evaluate(state.params, state.rest, evals, len(seeds))
          found = [self._summarise(one) for one in stats]
          improved = self._improved(record, found, seeds)
          best = programs.keep(best, state, improved[np.arange(len(layout.padded)) % len(seeds)])
          rows[-1] |= {name: [float(one[name]) for one in found] for name in found[0]}

        for row in rows:
          if row["step"] % settings.log_every == 0 or (evaluating and row is rows[-1]):
            log.write({**row, "seconds": round(record.seconds, 3)})
        progress.update(record.step, rows[-1] if rows else {})

        if saving:
          log.flush()
          self._compiled |= programs.compiled
          record.compiled, record.feed = sorted(self._compiled), feed.state
          checkpoints.save(state, best, record)
        if stopping and not last:
          checkpoints.wait()
          raise self._interruption.preempted(
            f"saved step {record.step} of {settings.steps}{self._which(seeds)}"
          )
    return best

  def finish(self) -> dict:
    """Pictures, then results.json: the file that says the run is finished comes last."""
    experiment, folder = self._experiment, self._folder
    value = results(
      experiment,
      self._found,
      steps=self._settings.steps,
      seconds=self._seconds,
      compile_count=len(self._compiled),
      config_hash=folder.config_hash,
    )
    if is_first_process():
      plots.curves(
        read_rows(folder.path / "metrics.jsonl"),
        folder.path / "curves.png",
        metric=experiment.metric,
        title=f"{experiment.dataset}, {experiment.model}",
      )
      if experiment.report is not None:
        experiment.report([seed.stats for seed in self._found], folder.path)
      folder.write("cost.json", self._cost())
      folder.write("results.json", value)
    say(f"{summary(value)} -> {folder.path / 'results.json'}")
    return value

  def _stopping(self, step: int, count: int) -> bool:
    """Whether to save and stop now: all processes of a job at the same step."""
    received = self._interruption.received is not None
    if not processes.several():
      return received
    asking = step // processes.STOP_EVERY > (step - count) // processes.STOP_EVERY
    return asking and processes.any_of(received)

  def _layout(self, seeds: tuple[int, ...]) -> Layout:
    return Layout(self._mesh, seeds, self._settings.rules, self._experiment.rows)

  def _cost(self) -> dict:
    seeds = len(self._settings.groups[0])
    return cost(self._step_seconds, self._experiment, seeds=seeds, devices=self._mesh.size)

  def _which(self, seeds: tuple[int, ...]) -> str:
    return f" seed {seeds[0]}" if len(self._settings.groups) > 1 else ""

  def _steps_to_go(self, step: int) -> int:
    """Steps until something is due, at most one call's."""
    settings = self._settings
    due = [settings.eval_every - step % settings.eval_every]
    due += [settings.steps_between_checkpoints - step % settings.steps_between_checkpoints]
    return min(settings.steps_per_call, settings.steps - step, *due)

  def _evaluate(self, params, rest, batches: EvalFeed, count: int) -> list:
    """Statistics of each of `count` seeds, added up over batches in float64 on the host."""
    # All batches are dispatched before the first result is awaited.
    evaluate = self._programs.evaluate
    parts = jax.device_get([evaluate(params, rest, batch) for batch in batches])
    if not parts:
      raise InputError("eval_batches gave no batch: give at least one")
    wide = lambda x: np.asarray(x, np.float64 if np.issubdtype(x.dtype, np.inexact) else np.int64)
    total = jax.tree.map(lambda *leaves: sum(map(wide, leaves)), *parts)
    return [jax.tree.map(lambda leaf, i=i: leaf[i], total) for i in range(count)]

  def _summarise(self, stats) -> dict[str, float]:
    experiment = self._experiment
    metrics = experiment.summarise(stats)
    for name in (f"val/{experiment.metric}", f"test/{experiment.metric}", experiment.selection):
      if name not in metrics:
        raise InputError(
          f"the metric {experiment.metric!r} needs {name!r}, and summarise returns "
          f"{', '.join(metrics)}: choose one of these"
        )
    return metrics

  def _improved(self, record: Record, found: list[dict], seeds: tuple[int, ...]) -> np.ndarray:
    """[S] bool: seeds whose validation beats their best so far; the record follows.

    Of equal values the first stays.
    """
    name = self._experiment.selection
    sign = 1 if self._experiment.maximise else -1
    improved = np.zeros(len(found), bool)
    for i, metrics in enumerate(found):
      value, best = float(metrics[name]), record.best_metric[i]
      if not np.isfinite(value):
        raise Diverged(f"{name} is {value} at step {record.step}, seed {seeds[i]}")
      if best is None or sign * value > sign * best:
        record.best_metric[i], record.best_step[i], improved[i] = value, record.step, True
    return improved


def _rows(first: int, count: int, metrics: dict, seeds: tuple[int, ...]) -> list[dict]:
  """{"step", metric: one number per seed} of each step of a call, after `first` steps."""
  metrics = {name: np.asarray(values)[:count, : len(seeds)] for name, values in metrics.items()}
  for i in range(count):
    for name in ("loss", "grad_norm"):
      for seed, value in zip(seeds, metrics[name][i]):
        if not np.isfinite(value):
          raise Diverged(f"{name} is {value} at step {first + i + 1}, seed {seed}")
  return [
    {"step": first + i + 1, **{name: values[i].tolist() for name, values in metrics.items()}}
    for i in range(count)
  ]


def _checkpoint_folder(folder: Workdir, seeds: tuple[int, ...]) -> Path:
  name = f"seed_{seeds[0]}" if len(seeds) == 1 else f"seeds_{seeds[0]}-{seeds[-1]}"
  return folder.path / "checkpoints" / name


@contextlib.contextmanager
def _checkpoints(folder: Workdir, layout: Layout, programs: Programs):
  where = _checkpoint_folder(folder, layout.seeds)
  checkpoints = Checkpoints(where, layout, programs.abstract, folder.config_hash)
  with contextlib.closing(checkpoints):
    yield checkpoints
