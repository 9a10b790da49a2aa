"""The loop, in running order: claim, build, restore, train, evaluate, save, report."""

import collections
import contextlib
from pathlib import Path
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from h2g.errors import InputError
from h2g.train import plots
from h2g.train import processes
from h2g.train.checkpoint import Checkpoints
from h2g.train.checkpoint import Keep
from h2g.train.checkpoint import Record
from h2g.train.compilation import enable_compilation_cache
from h2g.train.experiment import Experiment
from h2g.train.feed import EvalFeed
from h2g.train.feed import train_feed
from h2g.train.optimizer import make_optimizer
from h2g.train.profile import Profile
from h2g.train.restore import groups_of
from h2g.train.restore import read_seeds
from h2g.train.results import cost
from h2g.train.results import results
from h2g.train.results import SeedResult
from h2g.train.results import spent
from h2g.train.results import summary
from h2g.train.settings import complete
from h2g.train.settings import Settings
from h2g.train.sharding import Layout
from h2g.train.sharding import make_mesh
from h2g.train.step import Best
from h2g.train.step import GOOD
from h2g.train.step import Programs
from h2g.train.step import seed_keys
from h2g.train.step import SPIKE
from h2g.train.step import State
from h2g.train.stops import Diverged
from h2g.train.stops import Interruption
from h2g.train.watch import Watch
from h2g.train.workdir import cannot_write
from h2g.train.workdir import Workdir
from h2g.train.writers import is_first_process
from h2g.train.writers import MetricsLog
from h2g.train.writers import Progress
from h2g.train.writers import read_rows
from h2g.train.writers import say


def run(
  experiment: Experiment,
  config,
  workdir: str | Path,
  *,
  bar: bool = True,
  profile: str | None = None,
) -> dict:
  """Trains to the last step, from the last checkpoint where there is one.

  The same config gives the same numbers however often the run was stopped. A finished run is not
  trained again.

  Args:
    experiment: what is trained.
    config: ConfigDict, see `Settings` for what is read of it; the whole of it names the run.
    workdir: directory of the run; one config each.
    bar: a progress bar where stderr is a terminal; otherwise a line now and then.
    profile: "FIRST:LAST" records these steps into workdir/profile, "" ten steps of its choice.
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
  trace = Profile(profile, folder.path)
  with Interruption() as interruption, Watch(settings.watchdog) as watch:
    mesh = make_mesh(settings.mesh)
    trainer = Trainer(experiment, settings, folder, mesh, interruption, bar, watch, trace)
    try:
      for seeds in settings.groups:
        trainer.train(seeds)
      return trainer.finish()
    except OSError as error:
      if processes.lost_a_peer(error):
        raise  # a barrier that times out is an OSError to Python
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
    skip=settings.on_divergence == "skip",
    spike_factor=settings.spike_factor,
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
    watch: Watch,
    profile: Profile,
  ):
    self._watch, self._profile = watch, profile
    self._times: dict[str, float] = {}  # seconds by phase, of all groups so far
    self._padding: list[float] = []  # of the logged steps
    self._passed_over: list[dict] = []
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
    self._watch.alive("making the batches")
    # What cannot be read has written nothing yet.
    evals = EvalFeed(self._experiment.eval_batches(layout.padded), layout)
    batches = self._experiment.train_batches(layout.padded)
    if is_first_process():
      self._folder.open()
    with _checkpoints(self._folder, layout, self._programs, self._keep()) as checkpoints:
      self._watch.alive("reading a checkpoint or creating the state")
      # State: read back, or made on the devices where it will live.
      restored = checkpoints.restore()
      if restored is None:
        state, best = self._create(layout)
        record = Record(0, [None] * len(seeds), [0] * len(seeds))
      else:
        state, best, record = restored
      del restored  # the first step gives its buffers away
      self._compiled |= set(record.compiled)
      if record.step < self._settings.steps:
        if record.step:
          say(f"going on from step {record.step} of {self._settings.steps}{self._which(seeds)}")
        best = self._fit(layout, batches, evals, checkpoints, state, best, record)
    self._times = {
      phase: self._times.get(phase, 0.0) + seconds for phase, seconds in record.times.items()
    }
    self._passed_over += record.passed_over
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
    settings, programs, seeds, watch = self._settings, self._programs, layout.seeds, self._watch
    profile = self._profile
    profile.start(record.step, settings.steps)
    feed = train_feed(batches, layout, state=record.feed, ahead=settings.prefetch)
    began, before = time.monotonic(), record.seconds
    first_step, times_before, counted = record.step, record.times, dict(watch.seconds)
    calls: collections.deque = collections.deque()  # whose metrics are still on the device
    with contextlib.ExitStack() as stack:
      stack.callback(feed.close)
      log = MetricsLog(
        self._folder.path,
        seeds,
        from_step=record.step,
        wandb=settings.wandb,
        config=self._folder.config,
      )
      stack.callback(log.close)
      progress = Progress(
        f"{self._experiment.model}{self._which(seeds)}",
        f"val/{self._experiment.metric}",
        start=record.step,
        steps=settings.steps,
        bar=self._bar,
      )
      stack.callback(progress.close)
      stack.callback(profile.close)

      while record.step < settings.steps:
        # One call, cut where something is due.
        with watch.phase("data", f"waiting for the batch of step {record.step + 1}"):
          batch = feed.next()
        profile.before(record.step)
        before_call, programs_known = time.monotonic(), len(programs.compiled)
        with watch.phase("compute", f"step {record.step + 1}"):
          if feed.resident:
            count = self._steps_to_go(record.step)
            state, metrics = programs.steps(state, batch, np.int32(count))
          else:
            count = 1
            state, metrics = programs.step(state, batch)
        if len(programs.compiled) != programs_known:
          watch.move("compute", "compile", time.monotonic() - before_call)
        calls.append((record.step, count, metrics, feed.state))
        record.step += count
        profile.after(record.step, metrics)
        last = record.step == settings.steps
        stopping = self._stopping(record.step, count)
        evaluating = last or record.step % settings.eval_every == 0
        saving = last or stopping or record.step % settings.steps_between_checkpoints == 0

        # Metrics are read one call late, while the device works on the next; or now, if due.
        rows, bad, position = [], [], None
        while len(calls) > (0 if evaluating or saving else 1) and not self._going_back(bad):
          first, count, metrics, position = calls.popleft()
          with watch.phase("compute", f"step {first + count}"):
            metrics = jax.device_get(metrics)
          of_call, found = _rows(first, count, metrics, seeds, settings.on_divergence == "skip")
          rows, bad = rows + of_call, bad + found
        if rows and len(programs.compiled) == programs_known:
          self._step_seconds.append((time.monotonic() - before_call) / len(rows))

        # Bad steps: the run ends, or has passed over the batch, or goes back and passes it over.
        going_back = self._going_back(bad)
        if going_back:
          rows = [row for row in rows if row["step"] <= bad[0].step]
          bad = [one for one in bad if one.step == bad[0].step]
        for one in bad:
          self._pass_over(one, record, log, rows)
        if going_back:
          calls.clear()
          record.step = bad[0].step
          feed.seek(position)
          state = self._roll_back(layout, checkpoints, bad, record, rows)
          last, saving = record.step == settings.steps, True
          evaluating = last or record.step % settings.eval_every == 0

        record.seconds = before + time.monotonic() - began
        if evaluating:
          with watch.phase("evaluate", f"the evaluation at step {record.step}"):
            stats = self._evaluate(state.params, state.rest, evals, len(seeds))
            found = [self._summarise(one) for one in stats]
          rows[-1] |= {name: [float(one[name]) for one in found] for name in found[0]}
          improved, bad = self._improved(record, found, seeds)
          for one in bad:
            self._pass_over(one, record, log, rows)
          best = programs.keep(best, state, improved[np.arange(len(layout.padded)) % len(seeds)])
          if bad:
            state, saving = self._roll_back(layout, checkpoints, bad, record, rows), True

        for row in rows:
          due = row["step"] % settings.log_every == 0 or (evaluating and row is rows[-1])
          if due or any(row.get("skipped", ())) or "rolled_back_to" in row:
            log.write({**row, "seconds": round(record.seconds, 3)})
            self._padding += row.get("padding_share", [])
        times = {name: spent - counted[name] for name, spent in watch.seconds.items()}
        total = {name: times_before.get(name, 0.0) + spent for name, spent in times.items()}
        done, elapsed = record.step - first_step, time.monotonic() - began
        progress.update(record.step, rows[-1] if rows else {}, self._speed(done, times, elapsed))

        if saving:
          with watch.phase("checkpoint", f"the save of step {record.step}"):
            log.flush()
            self._compiled |= programs.compiled
            record.compiled, record.feed = sorted(self._compiled), feed.state
            record.times = total
            if evaluating and settings.keep_best:
              self._rank(record, found)
            checkpoints.save(state, best, record)
        if stopping and not last:
          with watch.phase("checkpoint", f"the save of step {record.step}"):
            checkpoints.wait()
          raise self._interruption.preempted(
            f"saved step {record.step} of {settings.steps}{self._which(seeds)}"
          )
      # The end of a group is on disk before the next begins.
      with watch.phase("checkpoint", f"the save of step {record.step}"):
        checkpoints.wait()
      times = {name: spent - counted[name] for name, spent in watch.seconds.items()}
      times["other"] = max(0.0, time.monotonic() - began - sum(times.values()))
      record.times = {name: times_before.get(name, 0.0) + spent for name, spent in times.items()}
    return best

  def _create(self, layout: Layout) -> tuple[State, Best]:
    """The state of step 0: random parameters, or those of the run that the config names."""
    state, best = self._programs.create(seed_keys(layout.padded))
    settings = self._settings
    if settings.init_from:
      theirs = {seed for group in groups_of(Path(settings.init_from)) for seed in group.seeds}
      # A run of one seed serves all.
      seeds = [seed if len(theirs) > 1 else min(theirs) for seed in layout.padded]
      params = read_seeds(
        settings.init_from,
        state.params,
        tuple(seeds),
        stacked=True,
        strict=settings.init_strict,
        only=settings.init_only,
      )
      say(f"parameters from {settings.init_from}{self._which(layout.seeds)}")
      # The first step gives its state's buffers away: the best needs its own.
      state, best = state._replace(params=params), best._replace(params=_copy(params))
    return state, best

  def _keep(self) -> Keep:
    settings = self._settings
    going_back = settings.on_divergence == "rollback"
    return Keep(
      last=settings.keep_last,
      every=settings.keep_every,
      newest_of=settings.steps_between_checkpoints if going_back else 0,
    )

  def _rank(self, record: Record, found: list[dict]) -> None:
    """The checkpoint about to be saved takes its place among the best, if it has one."""
    value = float(np.mean([one[self._experiment.selection] for one in found]))
    sign = -1 if self._experiment.maximise else 1
    ranked = sorted([*record.kept, [record.step, value]], key=lambda one: (sign * one[1], one[0]))
    record.kept = ranked[: self._settings.keep_best]

  def _going_back(self, bad: list["Bad"]) -> bool:
    """Whether what comes after the first bad step is to be forgotten."""
    return bool(bad) and self._settings.on_divergence != "skip"

  def _pass_over(self, bad: "Bad", record: Record, log: MetricsLog, rows: list[dict]) -> None:
    """Tells and records a bad step that is passed over; Diverged where it must not be."""
    settings, step = self._settings, bad.step
    action = settings.on_divergence
    same = [one for one in record.passed_over if one["seed"] == bad.seed]
    if action == "skip":
      in_a_row = 1
      while in_a_row <= len(same) and same[-in_a_row]["step"] == step - in_a_row:
        in_a_row += 1
      stop = bad.of_validation or in_a_row > settings.patience
      told = f"batch skipped ({in_a_row} in a row)"
    else:
      to = self._regular_step(step)
      before = sum(one.get("to") == to for one in same)
      stop = action == "stop" or before >= settings.patience
      stop = stop or (bad.of_validation and step == settings.steps)  # nothing comes after it
      told = f"back to step {to}, going on with the batch of step {step + 1}"
    text = f"{bad.reason} at step {step}, seed {bad.seed}"
    if stop:
      for row in rows:
        if row["step"] <= step:
          log.write({**row, "seconds": round(record.seconds, 3)})
      log.flush()
      how = "" if action == "stop" else f" (config.train.on_divergence={action} cannot help here)"
      raise Diverged(f"{text}{how}")
    say(f"warning: {text}: {told}")
    event = {"step": step, "seed": bad.seed, "reason": bad.reason, "action": action}
    record.passed_over = [*record.passed_over, event | ({} if action == "skip" else {"to": to})]

  def _regular_step(self, step: int) -> int:
    """Where a run goes back to from `step`: the same however often it was stopped on the way."""
    every = self._settings.steps_between_checkpoints
    return (step - 1) // every * every

  def _roll_back(
    self,
    layout: Layout,
    checkpoints: Checkpoints,
    bad: list["Bad"],
    record: Record,
    rows: list[dict],
  ) -> State:
    """The state of the last regular checkpoint before the bad step, counted as that step."""
    step = bad[0].step
    with self._watch.phase("checkpoint", f"reading the checkpoint before step {step}"):
      state = checkpoints.regular(step, self._settings.steps_between_checkpoints)
      if state is None:
        state, _ = self._create(layout)
    rows[-1]["rolled_back_to"] = [float(self._regular_step(step))] * len(layout.seeds)
    return state._replace(step=layout.number(step))

  def _speed(self, steps: int, times: dict[str, float], seconds: float) -> str:
    """ "812 tokens/s, data 3 %, compute 92 %, checkpoint 1 %": of this process since it began."""
    experiment = self._experiment
    units = steps * experiment.units_per_step * len(self._settings.groups[0])
    shown = {name: times[name] / max(seconds, 1e-9) for name in ("data", "compute", "checkpoint")}
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shown.items())
    return f"{units / max(seconds, 1e-9):.4g} {experiment.unit}/s, {shares}"

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
      passed_over=self._passed_over,
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
      found = self._cost()
      folder.write("cost.json", found)
      say(spent(found))
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
    experiment = self._experiment
    return Layout(self._mesh, seeds, self._settings.rules, experiment.rows, experiment.sequence)

  def _cost(self) -> dict:
    seeds = len(self._settings.groups[0])
    return cost(
      self._step_seconds,
      self._experiment,
      seeds=seeds,
      devices=self._mesh.size,
      times=self._times,
      compile_count=len(self._compiled),
      padding=self._padding,
    )

  def _which(self, seeds: tuple[int, ...]) -> str:
    return f" seed {seeds[0]}" if len(self._settings.groups) > 1 else ""

  def _steps_to_go(self, step: int) -> int:
    """Steps until something is due, at most one call's."""
    settings = self._settings
    due = [settings.eval_every - step % settings.eval_every]
    due += [settings.steps_between_checkpoints - step % settings.steps_between_checkpoints]
    due += [steps for steps in [self._profile.steps_to_go(step)] if steps]
    return min(settings.steps_per_call, settings.steps - step, *due)

  def _evaluate(self, params, rest, batches: EvalFeed, count: int) -> list:
    """Statistics of each of `count` seeds, added up over batches in float64 on the host."""
    # All batches are dispatched before the first result is awaited.
    evaluate = self._programs.evaluate
    parts = []
    for batch in batches:
      parts.append(evaluate(params, rest, batch))
      self._watch.alive(f"batch {len(parts)} of an evaluation")
    parts = jax.device_get(parts)
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

  def _improved(
    self, record: Record, found: list[dict], seeds: tuple[int, ...]
  ) -> tuple[np.ndarray, list["Bad"]]:
    """([S] bool: seeds whose validation beats their best so far, those where it is no number).

    The record follows. Of equal values the first stays.
    """
    name = self._experiment.selection
    sign = 1 if self._experiment.maximise else -1
    improved, bad = np.zeros(len(found), bool), []
    for i, metrics in enumerate(found):
      value, best = float(metrics[name]), record.best_metric[i]
      if not np.isfinite(value):
        bad.append(Bad(record.step, seeds[i], f"{name} is {value}", of_validation=True))
      elif best is None or sign * value > sign * best:
        record.best_metric[i], record.best_step[i], improved[i] = value, record.step, True
    return improved, bad


class Bad(NamedTuple):
  """A step that a seed should not take, and why."""

  step: int
  seed: int
  reason: str
  of_validation: bool = False


def _rows(
  first: int, count: int, metrics: dict, seeds: tuple[int, ...], skip: bool
) -> tuple[list[dict], list[Bad]]:
  """({"step", metric: one number per seed}, what is bad) of each step of a call, after `first`.

  skip: whether the program passes over bad steps; then the rows tell with "skipped".
  """
  metrics = {name: np.asarray(values)[:count, : len(seeds)] for name, values in metrics.items()}
  loss, norm = metrics["loss"], metrics["grad_norm"]
  kinds = metrics.pop("divergence", np.where(np.isfinite(loss) & np.isfinite(norm), GOOD, -1))
  bad = []
  for i, j in zip(*np.nonzero(kinds != GOOD)):
    if kinds[i, j] == SPIKE:
      reason = f"loss {loss[i, j]:.4g} is a spike"
    else:
      name = "grad_norm" if np.isfinite(loss[i, j]) else "loss"
      reason = f"{name} is {metrics[name][i, j]}"
    bad.append(Bad(first + int(i) + 1, seeds[j], reason))
  if skip:
    metrics["skipped"] = (kinds != GOOD).astype(int)
  rows = [
    {"step": first + i + 1, **{name: values[i].tolist() for name, values in metrics.items()}}
    for i in range(count)
  ]
  return rows, bad


def _copy(tree):
  return jax.tree.map(jnp.copy, tree)


def _checkpoint_folder(folder: Workdir, seeds: tuple[int, ...]) -> Path:
  name = f"seed_{seeds[0]}" if len(seeds) == 1 else f"seeds_{seeds[0]}-{seeds[-1]}"
  return folder.path / "checkpoints" / name


@contextlib.contextmanager
def _checkpoints(folder: Workdir, layout: Layout, programs: Programs, keep: Keep | None = None):
  where = _checkpoint_folder(folder, layout.seeds)
  checkpoints = Checkpoints(where, layout, programs.abstract, folder.config_hash, keep)
  with contextlib.closing(checkpoints):
    yield checkpoints
