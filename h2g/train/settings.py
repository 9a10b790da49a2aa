"""The part of a config that the trainer reads, checked once at the start."""

import dataclasses
import difflib
import re
from typing import Any

from ml_collections import ConfigDict

from h2g.errors import InputError

OPTIMIZERS = ("adamw", "adam", "lion", "sgd", "lars")
SCHEDULES = ("cosine", "constant", "linear")
DECAYS = ("matrices", "all")
DTYPES = ("float32", "bfloat16")
ON_DIVERGENCE = ("stop", "skip", "rollback")
ASKED_AXES = ("expert", "sequence")  # mesh axes that only some models ask for


@dataclasses.dataclass(frozen=True)
class Settings:
  """Where it stands in the config, what it means, what it is when the config leaves it out.

  config.seed, config.num_seeds: the run trains seeds seed, seed + 1, ..., seed + num_seeds - 1.
  config.train.steps: optimiser steps of each seed.
  config.train.eval_every: steps between evaluations; the last step is always evaluated.
  config.train.checkpoint_every: steps between checkpoints; 0 makes ten a run.
  config.train.log_every: steps between rows of metrics.jsonl; evaluated steps always get a row.
  config.train.seeds_together: all seeds in one program, or one after the other.
  config.train.steps_per_call: steps in one call of the compiled program, on a resident batch.
  config.train.optimizer: one of OPTIMIZERS; lr: peak learning rate; schedule: one of SCHEDULES, to
    zero at the last step; warmup: steps from zero to the peak; weight_decay: decoupled, times the
    learning rate; decay: which parameters decay, "matrices" (two axes or more) or "all"; momentum:
    of sgd and lars; clip_norm: largest global norm of the gradient of a seed, 0 leaves it.
  config.train.rates: ordered (pattern, factor) pairs: the first pattern found in a parameter's path
    multiplies its learning rate and decay, as in (("^backbone/", 0.1),).
  config.train.accumulate: parts of a streamed batch whose gradients are summed one after the other.
  config.train.compute_dtype: one of DTYPES, of parameters and float inputs inside the loss;
    parameters, gradients and optimiser state stay float32.
  config.train.prefetch: batches of a stream that wait ready on the device.
  config.train.compilation_cache: folder of compiled programs kept between runs; "auto" is
    $XDG_CACHE_HOME/h2g or ~/.cache/h2g, "" turns it off.
  config.train.keep_last: newest checkpoints that stay; keep_every: steps between checkpoints that
    stay for good, a multiple of what lies between saves, 0 none; keep_best: saved checkpoints with
    the best validation that stay, 0 none (each checkpoint holds the best model so far anyway).
  config.train.on_divergence: what a loss or gradient that is not a number, or a spike, leads to,
    one of ON_DIVERGENCE: "stop" ends the run; "skip" leaves the model as it was before the batch;
    "rollback" takes the seeds that train together back to the last regular checkpoint and goes on
    with the batch after the bad one. A validation that is not a number stops, or rolls back.
  config.train.spike_factor: a loss further above its running mean than this many times the mean's
    size, less one, is a spike (3: above three times a positive mean); 0 looks for none.
  config.train.patience: skips in a row, or rollbacks to one checkpoint, after which the run stops.
  config.train.init_from: work directory of another run whose best parameters a run starts from,
    seed by seed where it has them, otherwise its only seed's; "" starts from random ones.
    init_only: regular expression of the parameter paths to take, "" all; init_strict: whether
    missing, unexpected and mismatched parameters are an error, or told and left at random.
  config.train.watchdog: seconds without a sign of life (a batch, a step, a save) after which the
    process ends itself with a message; 0 waits for ever.
  config.train.wandb: project of Weights & Biases to log to as well; "auto" is h2g, where the
    package is installed and knows an account; "" never.
  config.mesh.data, config.mesh.fsdp, config.mesh.tensor: devices along each axis; one may be -1,
    the rest of the devices. Seeds that train together are spread over `data`; a single seed's
    streamed examples over `data` and `fsdp`. config.mesh.sequence: devices along the positions of
    streamed examples, where the experiment has such. config.mesh.expert, or an axis of any other
    name: devices for the rules that name it.
  config.sharding_rules: ordered (pattern, axes) pairs: the first pattern found in a parameter's
    path (`blocks/0/kernel`) says along which mesh axis each of its array axes is split (None: not).
  """

  steps: int = 1000
  eval_every: int = 100
  checkpoint_every: int = 0
  log_every: int = 1
  seeds_together: bool = True
  steps_per_call: int = 10
  optimizer: str = "adamw"
  lr: float = 1e-3
  schedule: str = "cosine"
  warmup: int = 0
  weight_decay: float = 0.0
  decay: str = "matrices"
  momentum: float = 0.9
  clip_norm: float = 0.0
  rates: tuple[tuple[str, float], ...] = ()
  accumulate: int = 1
  compute_dtype: str = "float32"
  prefetch: int = 2
  compilation_cache: str = "auto"
  keep_last: int = 2
  keep_every: int = 0
  keep_best: int = 0
  on_divergence: str = "stop"
  spike_factor: float = 0.0
  patience: int = 5
  init_from: str = ""
  init_only: str = ""
  init_strict: bool = True
  watchdog: float = 1800.0
  wandb: str = "auto"
  seeds: tuple[int, ...] = (0,)
  mesh: tuple[tuple[str, int], ...] = (("data", -1), ("fsdp", 1), ("tensor", 1))
  rules: tuple[tuple[str, tuple[str | None, ...]], ...] = ()

  @classmethod
  def from_config(cls, config) -> "Settings":
    """Reads a ConfigDict; InputError names the field that cannot be used, and the remedy."""
    outside = ("seeds", "mesh", "rules")
    known = {f.name: f for f in dataclasses.fields(cls) if f.name not in outside}
    values: dict[str, Any] = {}
    for name, value in config.get("train", {}).items():
      if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(known)}"
        raise InputError(f"config.train.{name} is no setting of the trainer: {hint}")
      values[name] = _typed(f"config.train.{name}", value, type(known[name].default))
    first = _typed("config.seed", config.get("seed", 0), int)
    count = _typed("config.num_seeds", config.get("num_seeds", 1), int)
    _require(first >= 0, "config.seed", first, "use a number >= 0")
    _require(count >= 1, "config.num_seeds", count, "use a number >= 1")
    rules = tuple((pattern, tuple(axes)) for pattern, axes in config.get("sharding_rules", ()))
    mesh = _mesh(dict(cls.mesh), config.get("mesh", {}), rules)
    values |= dict(seeds=tuple(range(first, first + count)), mesh=tuple(mesh.items()), rules=rules)
    settings = cls(**values)
    positive = ("steps", "eval_every", "log_every", "steps_per_call", "prefetch", "accumulate")
    for name in (*positive, "keep_last", "patience"):
      value = getattr(settings, name)
      _require(value >= 1, f"config.train.{name}", value, "use a number >= 1")
    not_negative = ("checkpoint_every", "warmup", "weight_decay", "clip_norm", "lr")
    for name in (*not_negative, "keep_every", "keep_best", "watchdog"):
      value = getattr(settings, name)
      _require(value >= 0, f"config.train.{name}", value, "use a number >= 0")
    choices = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "decay": DECAYS}
    choices |= {"compute_dtype": DTYPES, "on_divergence": ON_DIVERGENCE}
    for name, names in choices.items():
      value, remedy = getattr(settings, name), f"choose from {', '.join(names)}"
      _require(value in names, f"config.train.{name}", repr(value), remedy)
    _require(
      settings.spike_factor == 0 or settings.spike_factor > 1,
      "config.train.spike_factor",
      settings.spike_factor,
      "use a factor > 1, or 0",
    )
    _require(
      settings.keep_every % settings.steps_between_checkpoints == 0,
      "config.train.keep_every",
      settings.keep_every,
      f"a checkpoint is saved every {settings.steps_between_checkpoints} steps: use a multiple",
    )
    _check_rates(settings.rates)
    _check_pattern("config.train.init_only", settings.init_only)
    return settings

  @property
  def steps_between_checkpoints(self) -> int:
    return self.checkpoint_every or max(1, self.steps // 10)

  @property
  def groups(self) -> tuple[tuple[int, ...], ...]:
    """Seeds that share a program run, in the order in which the groups are trained."""
    return (self.seeds,) if self.seeds_together else tuple((seed,) for seed in self.seeds)


def _check_rates(rates) -> None:
  for pair in rates:
    pattern, factor = pair if isinstance(pair, tuple) and len(pair) == 2 else (None, None)
    usable = isinstance(pattern, str) and isinstance(factor, (int, float)) and factor >= 0
    _require(usable, "config.train.rates", rates, "use pairs like ('backbone', 0.1), factors >= 0")
    _check_pattern("config.train.rates", pattern)


def _check_pattern(name: str, pattern: str) -> None:
  try:
    re.compile(pattern)
  except re.error as error:
    raise InputError(f"{name}={pattern!r} is no pattern: {error}") from error


def complete(config) -> ConfigDict:
  """A copy of the config that has every setting of the trainer, at its default where it lacked."""
  full = ConfigDict(config.to_dict() if hasattr(config, "to_dict") else config)
  defaults = {field.name: field.default for field in dataclasses.fields(Settings)}
  mesh, _, _ = dict(defaults.pop("mesh")), defaults.pop("seeds"), defaults.pop("rules")
  mesh |= dict.fromkeys(ASKED_AXES, 1)
  fill = {"seed": 0, "num_seeds": 1, "train": defaults, "mesh": mesh, "sharding_rules": ()}
  for name, value in fill.items():
    if name not in full:
      full[name] = value
    elif isinstance(value, dict) and hasattr(full[name], "items"):
      for key, default in value.items():
        if key not in full[name]:
          full[name][key] = default
  return full


def _mesh(mesh: dict[str, int], asked, rules) -> dict[str, int]:
  """The default axes with the sizes that are asked for, then the further axes that are in use."""
  known = (*mesh, *ASKED_AXES)
  ruled = {axis for _, axes in rules for axis in axes if axis is not None}
  for axis, size in asked.items():
    size = _typed(f"config.mesh.{axis}", size, int)
    if axis in mesh or axis in ruled or (axis in ASKED_AXES and size != 1):
      mesh[axis] = size
    elif axis not in ASKED_AXES:
      remedy = f"no rule names it; the axes are {', '.join(known)}"
      _require(False, f"config.mesh.{axis}", size, remedy)
  for pattern, axes in rules:
    for axis in axes:
      named = axis is None or axis in mesh or axis in ASKED_AXES
      remedy = f"the axes are {', '.join(dict.fromkeys((*mesh, *known)))}"
      _require(named, f"config.sharding_rules[{pattern!r}]", axis, remedy)
      if axis is not None:
        mesh.setdefault(axis, 1)
  return mesh


def _typed(name: str, value: Any, kind: type) -> Any:
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    value = float(value)
  # bool is an int to Python, never to a reader of configs.
  if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
    raise InputError(f"{name}={value!r} is a {type(value).__name__}: use a {kind.__name__}")
  return value


def _require(condition: bool, name: str, value: Any, remedy: str) -> None:
  if not condition:
    raise InputError(f"{name}={value} cannot be used: {remedy}")
