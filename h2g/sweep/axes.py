"""Which settings a sweep tries: its axes, and the points they span."""

from collections.abc import Sequence
import hashlib
import itertools
import re
from typing import NamedTuple

import numpy as np

from h2g.errors import InputError

RANGE = re.compile(r"(log|uniform|integer)\(\s*([^,()]+),\s*([^,()]+)\)")
LONGEST = 120  # of a folder's name
TRIES = 100  # draws for each point wanted, before the space counts as exhausted


class Axis(NamedTuple):
  """One setting and what it may be.

  Attributes:
    name: `train.lr` for --config.train.lr, or `variant.model` for an option of the variant.
    values: as written on the command line; empty for a range.
    kind: "" for values; "log", "uniform" or "integer" for a range from `low` to `high` (included).
    low, high: the range.
  """

  name: str
  values: tuple[str, ...]
  kind: str = ""
  low: float = 0.0
  high: float = 0.0

  @classmethod
  def parse(cls, text: str) -> "Axis":
    """Reads `NAME=V1,V2,...` or `NAME=log(LOW,HIGH)`, `uniform(LOW,HIGH)`, `integer(LOW,HIGH)`.

    Commas inside brackets or quotes belong to a value: `sample.fanouts=(8,4),(16,8)`.

    Raises:
      InputError: it cannot be read.
    """
    name, equals, rest = text.partition("=")
    name, rest = name.strip().removeprefix("--").removeprefix("config."), rest.strip()
    if not equals or not name or not rest:
      raise InputError(f"--axis {text!r}: write NAME=V1,V2 or NAME=log(LOW,HIGH)")
    found = RANGE.fullmatch(rest)
    if found is None:
      values = tuple(_split(rest))
      if "" in values:
        raise InputError(f"--axis {text!r} has an empty value: write NAME=V1,V2")
      return cls(name, tuple(dict.fromkeys(values)))
    kind = found.group(1)
    try:
      low, high = float(found.group(2)), float(found.group(3))
    except ValueError as error:
      raise InputError(f"--axis {text!r}: {kind} takes two numbers") from error
    if not low < high or (kind == "log" and low <= 0):
      raise InputError(f"--axis {text!r}: {kind} needs LOW < HIGH{', LOW > 0' * (kind == 'log')}")
    if kind == "integer" and (low % 1 or high % 1):
      raise InputError(f"--axis {text!r}: integer needs whole numbers")
    return cls(name, (), kind, low, high)

  def draw(self, rng: np.random.Generator) -> str:
    """One value at random: uniform over values, over the range, or over its logarithm."""
    if not self.kind:
      return self.values[rng.integers(len(self.values))]
    if self.kind == "integer":
      return str(rng.integers(int(self.low), int(self.high), endpoint=True))
    if self.kind == "log":
      return f"{np.exp(rng.uniform(np.log(self.low), np.log(self.high))):.4g}"
    return f"{rng.uniform(self.low, self.high):.4g}"


class Point(NamedTuple):
  """One setting of every axis: (name, value) pairs."""

  settings: tuple[tuple[str, str], ...]

  def config(self, config: str) -> str:
    """FILE:VARIANT with the options that axes `variant.X` set."""
    options = [f"{n.removeprefix('variant.')}={v}" for n, v in self.settings if _of_variant(n)]
    path, _, variant = config.partition(":")
    variant = ",".join(filter(None, [variant, *options]))
    return f"{path}:{variant}" if variant else path

  @property
  def options(self) -> tuple[str, ...]:
    """`--config.key=value` of the others."""
    return tuple(f"--config.{n}={v}" for n, v in self.settings if not _of_variant(n))

  @property
  def label(self) -> str:
    """`lr=0.001,dim=64`: last parts of the names where they differ, whole names where not."""
    last = [name.rpartition(".")[2] for name, _ in self.settings]
    clear = len(set(last)) == len(last)
    return ",".join(f"{b if clear else n}={v}" for (n, v), b in zip(self.settings, last))

  @property
  def folder(self) -> str:
    """The label as a folder's name."""
    safe = re.sub(r"[^\w.=,+()-]+", "_", self.label)
    if len(safe) <= LONGEST and safe == self.label:
      return safe
    digest = hashlib.sha256(self.label.encode()).hexdigest()[:8]
    return f"{safe[: LONGEST - 9]}-{digest}"


def points(axes: Sequence[Axis], *, draws: int = 0, seed: int = 0) -> list[Point]:
  """The points of a sweep, in order.

  Args:
    axes: at least one, names differing.
    draws: 0 takes the whole grid, the last axis running fastest; otherwise so many different points
      at random. The first points of a larger number are those of a smaller one.
    seed: of the draws.
  Raises:
    InputError: a range on a grid, an axis twice, or fewer different points than asked for.
  """
  names = [axis.name for axis in axes]
  if not axes:
    raise InputError("--axis is missing: name a setting, as in --axis train.lr=1e-3,3e-3")
  for name in names:
    if names.count(name) > 1:
      raise InputError(f"--axis {name} stands twice: list its values in one")
  as_point = lambda values: Point(tuple(zip(names, values)))
  if not draws:
    for axis in axes:
      if axis.kind:
        raise InputError(f"--axis {axis.name} is a range: give --random N, or list its values")
    return [as_point(values) for values in itertools.product(*(axis.values for axis in axes))]
  rng, found = np.random.default_rng(seed), {}
  for _ in range(TRIES * draws):
    found.setdefault(as_point([axis.draw(rng) for axis in axes]))
    if len(found) == draws:
      return list(found)
  raise InputError(f"--random {draws}: the axes have about {len(found)} different points only")


def _of_variant(name: str) -> bool:
  return name.startswith("variant.")


def _split(text: str) -> list[str]:
  """At commas outside brackets and quotes."""
  parts, depth, quote = [""], 0, ""
  for letter in text:
    if quote:
      quote = "" if letter == quote else quote
    elif letter in "'\"":
      quote = letter
    else:
      depth += (letter in "([{") - (letter in ")]}")
    if letter == "," and not depth and not quote:
      parts.append("")
    else:
      parts[-1] += letter
  return [part.strip() for part in parts]
