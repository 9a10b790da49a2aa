"""Train one config in one work directory.

  python -m h2g.train --config FILE[:VARIANT] --workdir DIR [--config.key.key=value ...]

  --config FILE:VARIANT   a Python file whose get_config(VARIANT) returns the settings
  --workdir DIR           where everything goes; the same command again goes on, or says it is done
  --config.x.y=value      another value for one setting of the config
  --noprogress            no progress bar: a line now and then, as when the output is not a terminal
  --profile[=FIRST:LAST]  a trace of these steps, or of ten, in DIR/profile, for TensorBoard
  --coordinator_address HOST:PORT --num_processes N --process_id I
                          this process is the I-th of a job of N, the 0-th is at HOST; Slurm, Open
                          MPI and GKE jobs are recognised without (docs/launch.md)
  --distributed           one of a job that JAX finds by itself: a Cloud TPU pod
  --help                  this text; with --config also every setting with its value

Exit status: 0 finished; 2 the input, the directory or the disk cannot be used; 3 a loss is not a
number, or a spike; 75 told to stop by SIGTERM and saved (130: by Ctrl-C), 76 another process of
the job is gone, 77 nothing happened for config.train.watchdog seconds: run the same command to go
on. docs/faults.md has the whole list.
"""

import difflib
import importlib
import importlib.util
import os
from pathlib import Path
import sys
import traceback
from typing import Any
from typing import NamedTuple

from absl import flags
from ml_collections import config_flags

from h2g.errors import InputError
from h2g.train import processes
from h2g.train import stops
from h2g.train.settings import complete

HELP = ("--help", "-help", "-h", "-?")


class Arguments(NamedTuple):
  """The command line, read."""

  config: Any  # ConfigDict with its overrides, None without --config
  workdir: str | None
  progress: bool
  profile: str | None  # "FIRST:LAST", "" for the trainer's choice, None for none
  job: tuple[str | None, int | None, int | None, bool]  # see `processes.join`


def main(argv: list[str]) -> int:
  """Runs the command line; returns its exit status."""
  status = _status(argv)
  if status and processes.several():
    processes.leave(status)
  return status


def _status(argv: list[str]) -> int:
  try:
    with stops.EarlyStop():
      return _main(argv)
  except InputError as error:
    return _fail(error, stops.FAILED)
  except stops.Diverged as error:
    return _fail(f"{error}; the last checkpoint is from before it", stops.DIVERGED)
  except stops.Preempted as stop:
    print(stop, flush=True)
    return stop.status
  except KeyboardInterrupt:
    return _fail("stopped at once, by Ctrl-C; run the same command to go on", stops.INTERRUPTED)
  except Exception as error:
    if processes.lost_a_peer(error):
      reason = " ".join(str(error).split())[:160]
      return _fail(
        f"another process of the job is gone ({reason}); run the same commands to go on from the "
        "last checkpoint",
        stops.LOST,
      )
    if processes.several():
      traceback.print_exc()
      return 1
    raise


def _main(argv: list[str]) -> int:
  words = [word for word in argv if word not in HELP]
  config, workdir, progress, profile, job = parse(words)
  if words != argv:
    print(__doc__.strip())
    if config is not None:
      print("\nSettings of this config:")
      for name, value in _leaves(config):
        print(f"  --{name}={value}")
    return 0
  if config is None:
    raise InputError("--config is missing: name a config, as in --config configs/h2gb.py:tiny")
  if not workdir:
    raise InputError("--workdir is missing: name a directory, as in --workdir runs/tiny")
  processes.join(*job)
  return _train(config, Path(workdir).expanduser(), progress, profile)


def _train(config, workdir: Path, progress: bool, profile: str | None) -> int:
  from h2g.train.results import summary
  from h2g.train.workdir import Workdir

  # A finished or foreign directory answers before anything heavy is imported.
  folder = Workdir(workdir, config)
  folder.check()
  if done := folder.results():
    print(f"already finished: {summary(done)} -> {workdir / 'results.json'}")
    return 0

  from h2g.train import loop
  from h2g.train.compilation import enable_compilation_cache

  enable_compilation_cache(config.train.compilation_cache)  # preparing the data may compile too
  loop.run(_build(config), config, workdir, bar=progress, profile=profile)
  return 0


def _build(config):
  """The experiment that the config names: experiments/<name>/experiment.py, or a dotted module."""
  name = config.get("experiment")
  if not name:
    raise InputError("config.experiment is missing: name a folder of experiments/ or a module")
  module = name if "." in name else f"experiments.{name}.experiment"
  try:
    return importlib.import_module(module).build(config)
  except ModuleNotFoundError as error:
    if error.name and f"{module}.".startswith(f"{error.name}."):
      raise InputError(
        f"config.experiment={name!r}: there is no module {module}; run from the repository, or "
        "name a folder of experiments/"
      ) from error
    raise


def parse(argv: list[str]) -> Arguments:
  """Reads the flags; InputError for what cannot be read."""
  where, argv = _take_config(argv)
  config = None if where is None else complete(_load(where))
  # Flags of this call alone, not absl's global ones: main may be called again in the same process.
  values = flags.FlagValues()
  workdir = flags.DEFINE_string("workdir", None, "", flag_values=values)
  progress = flags.DEFINE_bool("progress", True, "", flag_values=values)
  profile = flags.DEFINE_string("profile", None, "", flag_values=values)
  argv = ["--profile=" if word in ("--profile", "-profile") else word for word in argv]
  job = (
    flags.DEFINE_string("coordinator_address", None, "", flag_values=values),
    flags.DEFINE_integer("num_processes", None, "", lower_bound=1, flag_values=values),
    flags.DEFINE_integer("process_id", None, "", lower_bound=0, flag_values=values),
    flags.DEFINE_bool("distributed", False, "", flag_values=values),
  )
  try:
    if config is not None:
      config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    rest = values(argv)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
    raise InputError(_explain(error, argv, config)) from error
  if len(rest) > 1:
    raise InputError(f"{rest[1]!r} is not understood: settings are written --config.key=value")
  job = tuple(flag.value for flag in job)
  return Arguments(config, workdir.value, progress.value, profile.value, job)


def _take_config(argv: list[str]) -> tuple[str | None, list[str]]:
  """FILE:VARIANT of --config, and the other words."""
  where, others = None, []
  words = iter(argv)
  for word in words:
    name, has_value, value = word.partition("=")
    if name not in ("--config", "-config"):
      others.append(word)
    elif has_value:
      where = value
    elif (where := next(words, None)) is None:
      raise InputError("--config has no value: name a config, as in --config configs/h2gb.py:tiny")
  return where, others


def _load(where: str):
  """The ConfigDict of FILE[:VARIANT]."""
  path, has_variant, variant = where.partition(":")
  root = Path(path).absolute().parent.parent  # the folder of `configs`, and of `experiments`
  if str(root) not in sys.path:
    sys.path.append(str(root))
  if not Path(path).is_file():
    raise InputError(f"--config {path} cannot be read: there is no such file")
  spec = importlib.util.spec_from_file_location("h2g_config", path)
  if spec is None:
    raise InputError(f"--config {path} cannot be read: name a Python file (.py)")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, "get_config"):
    raise InputError(f"--config {path} has no function get_config")
  try:
    return module.get_config(variant) if has_variant else module.get_config()
  except ValueError as error:  # a variant that there is not; the message lists those there are
    raise InputError(str(error)) from error


def _explain(error: BaseException, argv: list[str], config) -> str:
  """One line for what flags make of a mistake."""
  if isinstance(error, (AttributeError, KeyError)):  # an override of a setting that is not there
    known = dict(_leaves(config))
    for word in argv[1:]:
      name = word.split("=")[0].removeprefix("--")
      is_branch = any(leaf.startswith(f"{name}.") for leaf in known)
      if name.startswith("config.") and name not in known and not is_branch:
        close = difflib.get_close_matches(name, known, 1, cutoff=0.8)
        hint = f"did you mean --{close[0]}?" if close else "--help lists the settings"
        return f"--{name} is no setting of the config: {hint}"
  return " ".join(str(error).split())


def _leaves(config, prefix: str = "config"):
  """("config.a.b", value) of every setting."""
  for name, value in config.items():
    path = f"{prefix}.{name}"
    if hasattr(value, "items"):
      yield from _leaves(value, path)
    else:
      yield path, value


def _fail(error: object, status: int) -> int:
  print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
  return status


def _quiet_about_checkpoints(unraisable) -> None:
  """The tasks of a failed save or restore complain one by one; it raises its own error."""
  code = getattr(unraisable.object, "cr_code", None)
  of_orbax = code is not None and "orbax" in code.co_filename
  if not of_orbax and str(unraisable.exc_value) != "Event loop is closed":
    sys.__unraisablehook__(unraisable)


if __name__ == "__main__":
  sys.unraisablehook = _quiet_about_checkpoints
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
  sys.exit(main(sys.argv))
