"""Train one config in one work directory.

  python -m h2g.train --config FILE[:VARIANT] --workdir DIR [--config.key.key=value ...]

  --config FILE:VARIANT   a Python file whose get_config(VARIANT) returns the settings
  --workdir DIR           where everything goes; the same command again goes on, or says it is done
  --config.x.y=value      another value for one setting of the config
  --noprogress            no progress bar: a line now and then, as when the output is not a terminal
  --help                  this text; with --config also every setting with its value

Exit status: 0 finished; 2 the input, the directory or the disk cannot be used; 3 a loss is not a
number; 75 told to stop by SIGTERM and saved (130: by Ctrl-C): run the same command to go on.
"""

import difflib
import importlib
import os
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from h2g.errors import InputError

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, FILE[:VARIANT].")
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
PROGRESS = flags.DEFINE_bool("progress", True, "Progress bar.")


def main(argv: list[str]) -> int:
  """Runs the command line; returns its exit status."""
  try:
    return _main(argv)
  except InputError as error:
    return _fail(error, 2)


def _main(argv: list[str]) -> int:
  help_asked = bool({"--help", "-h", "-help", "-?"} & set(argv[1:]))
  argv = [word for word in argv if word not in ("--help", "-h", "-help", "-?")]
  _make_importable(argv)
  config = _parse(argv)
  if help_asked:
    print(__doc__.strip())
    if config is not None:
      print("\nSettings of this config:")
      for name, value in _leaves(config):
        print(f"  --{name}={value}")
    return 0
  if config is None:
    raise InputError("--config is missing: name a config, as in --config configs/h2gb.py:tiny")
  if not WORKDIR.value:
    raise InputError("--workdir is missing: name a directory for the run, as in --workdir runs/tiny")
  return _train(config, Path(WORKDIR.value).expanduser())


def _train(config, workdir: Path) -> int:
  from h2g.train.results import summary
  from h2g.train.workdir import Workdir

  # A finished or foreign directory answers before anything heavy is imported.
  folder = Workdir(workdir, config)
  folder.check()
  if done := folder.results():
    print(f"already finished: {summary(done)} -> {workdir / 'results.json'}")
    return 0

  from h2g.train import loop
  from h2g.train.stops import Diverged
  from h2g.train.stops import Preempted

  try:
    loop.run(_build(config), config, workdir, bar=PROGRESS.value)
  except Preempted as stop:
    print(stop, flush=True)
    return stop.status
  except Diverged as error:
    return _fail(f"{error}; the last checkpoint in {workdir} is from before it", error.status)
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
    if error.name and module.startswith(error.name):
      raise InputError(
          f"config.experiment={name!r}: there is no module {module}; run from the repository, or name "
          "a folder of experiments/"
      ) from error
    raise


def _make_importable(argv: list[str]) -> None:
  """Puts the folder above the config's `configs/` on the path, for `configs` and `experiments`."""
  for word, after in zip(argv[1:], [*argv[2:], ""]):
    name, _, value = word.partition("=")
    if name in ("--config", "-config"):
      root = Path(value or after).absolute().parents[1:2]
      sys.path += [str(folder) for folder in root if str(folder) not in sys.path]


def _parse(argv: list[str]):
  """The config with its overrides, None without --config; InputError for what cannot be read."""
  try:
    rest = flags.FLAGS(argv)
    config = CONFIG.value
  except InputError:
    raise
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
    raise InputError(_explain(error, argv)) from error
  if len(rest) > 1:
    raise InputError(f"{rest[1]!r} is not understood: settings are written --config.key=value")
  return config


def _explain(error: BaseException, argv: list[str]) -> str:
  """One line for what flags and config files make of a mistake."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  text = str(error)
  if "Traceback" in text:  # raised inside get_config: its own last line says what is wrong
    kind, _, message = lines[-1].partition(": ")
    plain = kind in ("ValueError", "KeyError") or kind.endswith("InputError")
    return message if plain else lines[-1]
  if isinstance(error, OSError) or "Failed loading config file" in text:
    return f"config file {_config_path(argv)} cannot be read: {lines[-1]}"
  if isinstance(error, (AttributeError, KeyError)):  # an override of a setting that is not there
    config = _without_overrides(argv)
    known = dict(_leaves(config)) if config is not None else {}
    for word in argv[1:]:
      name = word.split("=")[0].removeprefix("--")
      if name.startswith("config.") and name not in known and not _is_branch(name, known):
        close = difflib.get_close_matches(name, known, 3)
        hint = f"did you mean {' or '.join(close)}?" if close else "--help lists the settings"
        return f"--{name} is no setting of the config: {hint}"
  return " ".join(lines)


def _without_overrides(argv: list[str]):
  path = _config_path(argv, variant=True)
  values = flags.FlagValues()
  holder = config_flags.DEFINE_config_file("config", None, "", flag_values=values)
  values(["", f"--config={path}"])
  return holder.value


def _config_path(argv: list[str], variant: bool = False) -> str:
  for word, after in zip(argv[1:], [*argv[2:], ""]):
    name, has_value, value = word.partition("=")
    if name in ("--config", "-config"):
      path = value if has_value else after
      return path if variant else path.split(":")[0]
  return ""


def _is_branch(name: str, known: dict) -> bool:
  return any(leaf.startswith(f"{name}.") for leaf in known)


def _leaves(config, prefix: str = "config"):
  for name, value in config.items():
    path = f"{prefix}.{name}"
    if hasattr(value, "items"):
      yield from _leaves(value, path)
    else:
      yield path, value


def _fail(error: object, status: int) -> int:
  print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
  return status


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
  sys.exit(main(sys.argv))
