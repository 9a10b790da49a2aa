"""The loop, in running order: claim, build, restore, train, evaluate, save, report."""

import collections
import contextlib
import hashlib
import os
import platform
import time
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from h2g.errors import InputError
from h2g.train import plots
from h2g.train.checkpoint import Checkpoints
from h2g.train.checkpoint import Record
from h2g.train.experiment import Batch
from h2g.train.experiment import Experiment
from h2g.train.feed import EvalFeed
from h2g.train.feed import train_feed
from h2g.train.optimizer import make_optimizer
from h2g.train.results import results
from h2g.train.results import SeedResult
from h2g.train.results import summary
from h2g.train.settings import Settings
from h2g.train.sharding import Layout
from h2g.train.sharding import make_mesh
from h2g.train.step import Programs
from h2g.train.step import seed_keys
from h2g.train.stops import Diverged
from h2g.train.stops import Interruption
from h2g.train.stops import Preempted
from h2g.train.workdir import cannot_write
from h2g.train.workdir import Workdir
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
  folder = Workdir(workdir, config)
  folder.check()
  if done := folder.results():
    say(f"already finished: {summary(done)} -> {folder.path / 'results.json'}")
    return done
  settings = Settings.from_config(config)
  enable_compilation_cache(settings.compilation_cache)
  mesh = make_mesh(settings.mesh)
  with Interruption() as interruption:
    trainer = Trainer(experiment, settings, folder, mesh, interruption, bar)
    try:
      for seeds in settings.groups:
        trainer.train(seeds)
      return trainer.finish()
    except OSError as error:
      raise cannot_write(folder.path, error) from error


def restore_best(experiment: Experiment, config, workdir: str | Path):
  """(params, rest) of each seed's best validation step, leaves [seeds, ...], on one device's layout.

  Raises:
    InputError: the directory holds another config, or no checkpoint.
  """
  folder = Workdir(workdir, config)
  folder.check()
  settings = Settings.from_config(config)
  mesh = make_mesh((("data", 1), *((axis, 1) for axis, _ in settings.mesh[1:])), devices=1)
  optimizer = make_optimizer(settings)
  parts = []
  for seeds in settings.groups:
    layout = Layout(mesh, seeds, settings.rules)
    abstract = Programs(experiment, optimizer, layout, length=None).abstract
    with _checkpoints(folder, layout, abstract) as checkpoints:
      best = checkpoints.restore_best()
    if best is None:
      raise InputError(f"{folder.path} holds no checkpoint of seeds {seeds}: train first")
    parts.append(best)
  best = jax.tree.map(lambda *leaves: jax.numpy.concatenate(leaves), *parts)
  return best.params, best.rest


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
    self._programs: Programs | None = None
    self._compiled: set[str] = set()
    self._found: list[SeedResult] = []
    self._seconds = 0.0

  def train(self, seeds: tuple[int, ...]) -> None:
    """Trains one group to the end, or finds it at its end, and keeps its results."""
    experiment, settings = self._experiment, self._settings

    # Data, then programs: what cannot be read or traced has written nothing yet.
    layout = Layout(self._mesh, seeds, settings.rules)
    batches = experiment.train_batches(layout.padded)
    evals = EvalFeed(experiment.eval_batches(layout.padded), layout)
    resident = isinstance(batches, Batch)
    if self._programs is None:
      length = settings.steps_per_call if resident else None
      self._programs = Programs(experiment, make_optimizer(settings), layout, length=length)
    programs = self._programs
    self._folder.open()

    with contextlib.ExitStack() as stack:
      # State: restored, or made on the devices where it will live.
      checkpoints = stack.enter_context(_checkpoints(self._folder, layout, programs.abstract))
      restored = checkpoints.restore()
      if restored is None:
        state, best = programs.create(seed_keys(layout.padded))
        record = Record(0, [None] * len(seeds), [0] * len(seeds))
      else:
        state, best, record = restored
        if 0 < record.step < settings.steps:
          say(f"going on from step {record.step} of {settings.steps}{self._which(seeds)}")
      self._compiled |= set(record.compiled)
      feed = train_feed(batches, layout, state=record.feed, ahead=settings.prefetch)
      log = stack.enter_context(
          contextlib.closing(MetricsLog(self._folder.path, seeds, from_step=record.step))
      )
      label = f"{experiment.model}{self._which(seeds)}"
      progress = stack.enter_context(
          contextlib.closing(
                  Progress(
                  label,
                  f"val/{experiment.metric}",
                  start=record.step,
                  steps=settings.steps,
                  bar=self._bar,
              )
          )
      )
      began, before = time.monotonic(), record.seconds
      passed = lambda: before + time.monotonic() - began
      calls: collections.deque = collections.deque()

      while record.step < settings.steps:
        # One call of the train program, cut where something is due.
        first, count = record.step, self._steps_to_go(record.step) if resident else 1
        batch = feed.next()
        state, rows = programs.train(state, batch, np.int32(count))
        record.step += count

        # Its rows are read one call later, while the device works on the next; or now, if due.
        last = record.step == settings.steps
        stopping = self._interruption.received is not None
        evaluating = last or record.step % settings.eval_every == 0
        saving = last or stopping or record.step % settings.steps_between_checkpoints == 0
        calls.append((first, count, rows))
        written = []
        while len(calls) > (0 if evaluating or saving else 1):
          written += _rows(*calls.popleft(), seeds)

        if evaluating:
          stats = evaluate(programs, state.params, state.rest, evals, len(seeds))
          metrics = [self._summarise(one) for one in stats]
          improved = self._improved(record, metrics, seeds)
          best = programs.keep(best, state, improved[np.arange(len(layout.padded)) % len(seeds)])
          written[-1] |= {name: [float(one[name]) for one in metrics] for name in metrics[0]}

        for row in written:
          if row["step"] % settings.log_every == 0 or (evaluating and row is written[-1]):
            log.write({**row, "seconds": round(passed(), 3)})
        progress.update(record.step, written[-1] if written else {})

        if saving:
          log.flush()
          self._compiled |= programs.compiled
          record.compiled = sorted(self._compiled)
          record.seconds, record.feed = passed(), feed.state
          checkpoints.save(state, best, record)
        if stopping and not last:
          checkpoints.wait()
          raise Preempted(
              f"{self._interruption.received.name}: saved step {record.step} of {settings.steps}"
              f"{self._which(seeds)}; run the same command to go on",
              self._interruption.status,
          )

      # The end of a group is on disk before the next begins.
      checkpoints.wait()
      stats = evaluate(programs, best.params, best.rest, evals, len(layout.padded))
      self._compiled |= programs.compiled
      self._seconds += record.seconds
      for seed, step, one in zip(seeds, record.best_step, stats):
        self._found.append(SeedResult(seed, step, self._summarise(one), one))

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
    plots.curves(
        read_rows(folder.path / "metrics.jsonl"),
        folder.path / "curves.png",
        metric=experiment.metric,
        title=f"{experiment.dataset}, {experiment.model}",
    )
    if experiment.report is not None:
      experiment.report([seed.stats for seed in self._found], folder.path)
    folder.write("results.json", value)
    say(f"{summary(value)} -> {folder.path / 'results.json'}")
    return value

  def _which(self, seeds: tuple[int, ...]) -> str:
    return f" seed {seeds[0]}" if len(self._settings.groups) > 1 else ""

  def _steps_to_go(self, step: int) -> int:
    """Steps until something is due, at most one call's."""
    settings = self._settings
    due = [settings.eval_every, settings.steps_between_checkpoints]
    return min(settings.steps_per_call, settings.steps - step, *(every - step % every for every in due))

  def _summarise(self, stats) -> dict[str, float]:
    metrics = self._experiment.summarise(stats)
    for split in ("val", "test"):
      if (name := f"{split}/{self._experiment.metric}") not in metrics:
        raise InputError(
            f"the selection metric {self._experiment.metric!r} needs {name!r}, and summarise returns "
            f"{', '.join(metrics)}: choose one of these"
        )
    return metrics

  def _improved(self, record: Record, metrics: list[dict], seeds: tuple[int, ...]) -> np.ndarray:
    """[S] bool: seeds whose validation beats their best so far; the record follows."""
    name = f"val/{self._experiment.metric}"
    sign = 1 if self._experiment.maximise else -1
    improved = np.zeros(len(metrics), bool)
    for i, values in enumerate(metrics):
      value, best = float(values[name]), record.best_metric[i]
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


def evaluate(programs: Programs, params, rest, batches: EvalFeed, count: int) -> list:
  """Statistics of each seed, added up over batches in float64 on the host."""
  # All batches are dispatched before the first result is awaited.
  parts = jax.device_get([programs.evaluate(params, rest, batch) for batch in batches])
  if not parts:
    raise InputError("eval_batches gave no batch: give at least one")
  wide = lambda x: np.asarray(x, np.float64 if np.issubdtype(x.dtype, np.inexact) else np.int64)
  total = jax.tree.map(lambda *leaves: sum(map(wide, leaves)), *parts)
  return [jax.tree.map(lambda leaf: leaf[i], total) for i in range(count)]  # noqa: B023


def enable_compilation_cache(where: str) -> None:
  """Keeps compiled programs between runs, in a folder of this kind of machine."""
  if not where or jax.config.jax_compilation_cache_dir:
    return
  if where == "auto":
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    # Home directories are shared by unlike machines: a program compiled for one must not reach another.
    where = os.path.join(home, "h2g", f"{platform.machine()}-{_processor()}")
  jax.config.update("jax_compilation_cache_dir", where)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def _processor() -> str:
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    text = "".join(sorted({line for line in lines if line.startswith(("flags", "model name"))}))
  except OSError:
    text = platform.processor()
  return hashlib.sha256(text.encode()).hexdigest()[:8]


@contextlib.contextmanager
def _checkpoints(folder: Workdir, layout: Layout, abstract):
  seeds = layout.seeds
  name = f"seed_{seeds[0]}" if len(seeds) == 1 else f"seeds_{seeds[0]}-{seeds[-1]}"
  checkpoints = Checkpoints(
      folder.path / "checkpoints" / name, layout, abstract, folder.config_hash
  )
  with contextlib.closing(checkpoints):
    yield checkpoints
