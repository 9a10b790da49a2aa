"""One run's directory: whose it is, whether it is finished, and files that are whole or absent."""

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from h2g.errors import InputError

# Settings that change where and how often, never the numbers: a run may be resumed with others.
FREE = (
  "mesh",
  "sharding_rules",
  "train.checkpoint_every",
  "train.steps_per_call",
  "train.prefetch",
  "train.compilation_cache",
  "train.keep_last",
  "train.keep_every",
  "train.keep_best",
  "train.watchdog",
  "train.wandb",
)

# Settings younger than runs that may still go on: they count where they are not these defaults.
YOUNGER = {
  "train.on_divergence": "stop",
  "train.spike_factor": 0.0,
  "train.patience": 5,
  "train.init_from": "",
  "train.init_only": "",
  "train.init_strict": True,
  "train.rates": [],
}

# What the system says when it will not write, however deep in a message.
REASONS = tuple(
  os.strerror(number)
  for number in (errno.ENOSPC, errno.EROFS, errno.EFBIG, errno.EDQUOT, errno.EACCES, errno.EPERM)
)


class Workdir:
  """Paths of one run, claimed for one config.

  config.json says whose it is, results.json that it is finished; metrics.jsonl, curves.png, events/
  and checkpoints/ hold the rest.
  """

  def __init__(self, path: str | Path, config):
    self.path = Path(path)
    self.config = _plain(config.to_dict())
    self.config_hash = config_hash(self.config)

  def check(self) -> None:
    """Raises InputError where the directory belongs to another config; reads only."""
    if self.path.exists() and not self.path.is_dir():
      raise InputError(f"--workdir {self.path} is a file: name a directory")
    theirs = self._read("config.json")
    if theirs is None or config_hash(theirs) == self.config_hash:
      return
    differing = _difference(theirs, self.config)
    more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
    raise InputError(
      f"{self.path} holds a run of another config ({'; '.join(differing[:4])}{more}): choose "
      "another --workdir, or remove this one"
    )

  def open(self) -> None:
    """Creates the directory with its config.json."""
    try:
      self.path.mkdir(parents=True, exist_ok=True)
      if not (self.path / "config.json").exists():
        self.write("config.json", self.config)
    except OSError as error:
      raise cannot_write(self.path, error) from error

  def results(self) -> dict | None:
    """The results of a finished run, None of an unfinished one."""
    return self._read("results.json")

  def write(self, name: str, value: Any) -> None:
    """Writes a JSON file that is either the old one or the whole new one."""
    write_whole(self.path / name, (json.dumps(value, indent=1) + "\n").encode())

  def _read(self, name: str) -> dict | None:
    try:
      return json.loads((self.path / name).read_text())
    except FileNotFoundError:
      return None
    except (ValueError, OSError) as error:
      raise InputError(
        f"{self.path / name} cannot be read ({error}): remove it or the directory"
      ) from error


def write_whole(path: Path, content: bytes) -> None:
  """Replaces `path` by `content` in one step; on failure the old file stands and nothing else."""
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  try:
    with open(temporary, "wb") as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


def cannot_write(path: Path, error: BaseException) -> InputError:
  """The one line for a full or read-only disk, from whatever was raised."""
  text = " ".join(str(error).split())
  known = [reason for reason in REASONS if reason.lower() in text.lower()]
  reason = getattr(error, "strerror", None) or (known[0] if known else text[:200])
  return InputError(
    f"cannot write to {path}: {reason}; make room or allow writing there, then run the same command"
  )


def config_hash(config: dict) -> str:
  """12 hex digits of the settings that decide the numbers."""
  kept = _deciding(_plain(config))
  return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def _deciding(config: dict) -> dict[str, Any]:
  """{name: value} of the settings that decide the numbers."""
  flat = _flat(config)
  free = [name for name in FREE]
  if flat.get("train.on_divergence") == "rollback":
    free.remove("train.checkpoint_every")  # it says where to
  is_free = lambda name: any(name == one or name.startswith(f"{one}.") for one in free)
  return {
    name: value
    for name, value in flat.items()
    if not is_free(name) and not (name in YOUNGER and value == YOUNGER[name])
  }


def _difference(theirs: dict, ours: dict) -> list[str]:
  theirs, ours = _deciding(theirs), _deciding(ours)
  return [
    f"config.{name} is {theirs.get(name, _absent(name))!r} there, "
    f"{ours.get(name, _absent(name))!r} here"
    for name in sorted(set(theirs) | set(ours))
    if theirs.get(name, "absent") != ours.get(name, "absent")
  ]


def _absent(name: str) -> Any:
  return YOUNGER.get(name, "absent")


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
  if not isinstance(tree, dict):
    return {prefix.removesuffix("."): tree}
  return {k: v for name, value in tree.items() for k, v in _flat(value, f"{prefix}{name}.").items()}


def _plain(value: Any) -> Any:
  """The value as JSON gives it back, so that what was read compares with what would be written."""
  return json.loads(json.dumps(value, sort_keys=True, default=str))
