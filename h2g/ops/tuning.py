"""Sizes that a device was measured to prefer over the closed form, kept in a small JSON file.

  {"NVIDIA H200": {"linear.xla": {"length=16384": {"chunk": 128, "group": 32}}}}

Nothing needs the file: every size has a closed form. `python experiments/speed/autotune.py --json
tuning.json` measures the sizes of the device at hand; `H2G_TUNING=tuning.json` in the environment,
or `tuning.load`, uses them. Sizes change speed, never results. They are read while a call is
traced, so load the file first.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
import contextlib
import contextvars
import functools
import json
import os
import pathlib
import statistics
import time

import jax

Sizes = dict[str, int]

_TRIED = contextvars.ContextVar("h2g_tried_sizes", default=None)
_loaded: dict[str, dict[str, dict[str, Sizes]]] = {}


def load(path: str | os.PathLike) -> None:
  """Takes the sizes of a file into use, over those of files loaded before.

  Args:
    path: JSON {device kind: {operation: {shape: {size: positive int}}}}.
  Raises:
    ValueError: the file is not of this form; the message names the file and the place in it.
  """
  try:
    devices = json.loads(pathlib.Path(path).read_text())
  except json.JSONDecodeError as error:
    raise ValueError(f"{path} is not JSON: {error}") from error

  def check(value, depth: int, where: str):
    if depth == 4:
      if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{path}: {where} must be a positive integer: got {value!r}")
      return
    if not isinstance(value, dict):
      raise ValueError(f"{path}: {where or 'the file'} must be an object: got {value!r}")
    for key, inside in value.items():
      check(inside, depth + 1, f"{where}[{key!r}]")

  check(devices, 0, "")
  for device, operations in devices.items():
    for operation, shapes in operations.items():
      _loaded.setdefault(device, {}).setdefault(operation, {}).update(shapes)


@functools.cache
def _load_environment() -> None:
  if path := os.environ.get("H2G_TUNING"):
    load(path)


def bucket(length: int) -> int:
  """The next power of two: lengths in between share what was measured."""
  return 1 << max(length - 1, 0).bit_length()


def sizes(operation: str, closed_form: Mapping[str, int], **shape: int) -> Sizes:
  """The sizes to run with: those tried, else those loaded for device and shape, else the given.

  Args:
    operation: "operation.implementation".
    closed_form: {name: size}, what to do without measurements.
    **shape: what the choice depends on; each is taken by its `bucket`.
  """
  tried = _TRIED.get()
  if tried is not None and tried[0] == operation:
    return {**closed_form, **tried[1]}
  _load_environment()
  if not _loaded:
    return dict(closed_form)
  found = _loaded.get(jax.devices()[0].device_kind, {}).get(operation, {})
  return {**closed_form, **found.get(key(**shape), {})}


def key(**shape: int) -> str:
  """Name of a shape in the file."""
  return ",".join(f"{name}={bucket(n)}" for name, n in sorted(shape.items()))


@contextlib.contextmanager
def trying(operation: str, tried: Mapping[str, int]):
  """Within the context, calls of the operation that are traced run with these sizes."""
  token = _TRIED.set((operation, dict(tried)))
  try:
    yield
  finally:
    _TRIED.reset(token)


def fastest(
  operation: str,
  candidates: Iterable[Mapping[str, int]],
  build: Callable[[], Callable[[], object]],
  *,
  rounds: int = 9,
) -> tuple[Sizes, dict[str, float]]:
  """Times each candidate, interleaved.

  Args:
    operation: as in `sizes`.
    candidates: sizes to try; those that an implementation refuses are left out.
    build: traces and compiles a call, and returns what runs it once, to its end.
    rounds: how often each is timed, after one run to warm up.
  Returns:
    (the fastest candidate, {candidate as JSON: median seconds}).
  Raises:
    ValueError: every candidate is refused.
  """
  runs, refused = {}, []
  for candidate in candidates:
    with trying(operation, candidate):
      try:
        run = build()
        run()
      except NotImplementedError as error:
        refused.append(str(error))
        continue
    runs[json.dumps(dict(candidate), sort_keys=True)] = run
  if not runs:
    raise ValueError(f"{operation} refuses every candidate: {'; '.join(refused) or 'none given'}")
  taken: dict[str, list[float]] = {name: [] for name in runs}
  for _ in range(rounds):
    for name, run in runs.items():
      start = time.perf_counter()
      run()
      taken[name].append(time.perf_counter() - start)
  medians = {name: statistics.median(times) for name, times in taken.items()}
  return json.loads(min(medians, key=medians.get)), medians
