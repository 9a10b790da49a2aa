"""The arrows between the parts: who may import whom. Run as a script, this file draws them.

  errors < ops < graph < nn, data < models, convert < experiments;  train, configs and speed stand
  aside

`nn` and `data` stand on one level and do not see each other. `train` sees pytrees and functions, so
it imports `errors` alone. `configs` hold values, so they import `ml_collections` and each other.
"""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# part: the parts that it may import, besides itself.
ARROWS = {
  "errors": (),
  "commands": ("errors",),
  "ops": ("errors",),
  "graph": ("errors", "ops"),
  "nn": ("errors", "ops", "graph"),
  "data": ("errors", "commands", "ops", "graph"),
  "models": ("errors", "ops", "graph", "nn"),
  "train": ("errors",),
  "benchmark": ("errors", "commands", "train"),
  "sweep": ("errors", "commands", "train"),
  "papers": ("errors", "commands", "train"),
  "report": ("errors",),
  "metrics": (),
  "pictures": ("errors",),
  "convert": ("errors", "data"),
  "experiments": (
    *("errors", "ops", "graph", "nn", "data", "models", "train", "papers", "convert"),
    *("metrics", "pictures"),
  ),
  "configs": (),
}
# From outside h2g, a config sees this only: it is read before anything heavy is imported.
CONFIGS_SEE = ("ml_collections",)


def part_of(module: str) -> str | None:
  """h2g.ops.edge -> ops, experiments.h2gb -> experiments; None for what is not ours."""
  head, _, rest = module.partition(".")
  if head == "h2g":
    part = rest.partition(".")[0]
    return None if not part or part.startswith("__") else part  # h2g.__version__ is no part
  return head if head in ("experiments", "configs") else None


def imported(source: str, module: str, is_package: bool) -> list[str]:
  """Full names of the modules that a file imports, wherever in it the import stands."""
  found = []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      found += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      base = node.module or ""
      if node.level:
        package = module.split(".")[: None if is_package else -1]
        package = package[: len(package) - node.level + 1]
        base = ".".join([*package, *([node.module] if node.module else [])])
      # `from h2g import ops` imports h2g.ops; `from h2g.ops import edge` names its part already.
      found += [f"{base}.{alias.name}" for alias in node.names]
  return found


def edges() -> dict[tuple[str, str], list[str]]:
  """(importing part, imported name) -> files, over h2g, experiments and configs."""
  found = {}
  for top in ("h2g", "experiments", "configs"):
    for path in sorted((ROOT / top).rglob("*.py")):
      parts = path.relative_to(ROOT).with_suffix("").parts
      is_package = parts[-1] == "__init__"
      module = ".".join(parts[:-1] if is_package else parts)
      part = part_of(module)
      if part is None:  # h2g/__init__.py
        continue
      for name in imported(path.read_text(encoding="utf-8"), module, is_package):
        found.setdefault((part, name), []).append(str(path.relative_to(ROOT)))
  return found


@pytest.mark.smoke
def test_imports_follow_the_arrows():
  wrong = []
  for (part, name), files in edges().items():
    target = part_of(name)
    if target is None or target == part:
      continue
    if part not in ARROWS:
      wrong.append(f"{files[0]}: h2g/{part} has no place among the arrows")
    elif target not in ARROWS[part]:
      sees = ", ".join(ARROWS[part]) or "itself"
      wrong.append(f"{files[0]} imports {name}: {part} sees only {sees}")
  assert not wrong, "\n".join(wrong)


def test_configs_hold_values_only():
  standard = ("__future__", "typing", "collections", "dataclasses", "math")
  wrong = [
    f"{files[0]} imports {name}"
    for (part, name), files in edges().items()
    if part == "configs" and name.split(".")[0] not in (*CONFIGS_SEE, *standard, "configs")
  ]
  assert not wrong, "\n".join(wrong)


def test_experiments_stand_apart():
  """A paper's folder does not import another paper's: what two want moves into h2g."""
  wrong = []
  for (part, name), files in edges().items():
    if part != "experiments" or not name.startswith("experiments."):
      continue
    slug = name.split(".")[1]
    wrong += [f"{file} imports {name}" for file in files if pathlib.Path(file).parts[1] != slug]
  assert not wrong, "\n".join(wrong)


def test_the_arrows_have_no_cycle():
  order = list(ARROWS)
  for part, seen in ARROWS.items():
    assert all(order.index(other) < order.index(part) for other in seen), part


@pytest.mark.parametrize(
  "source, module, is_package, expected",
  [
    ("import h2g.ops.edge", "h2g.nn.a", False, ["h2g.ops.edge"]),
    ("from h2g import ops", "h2g.nn.a", False, ["h2g.ops"]),
    ("def f():\n  from h2g.ops import edge", "h2g.nn.a", False, ["h2g.ops.edge"]),
    ("from . import b", "h2g.nn.a", False, ["h2g.nn.b"]),
    ("from ..ops import edge", "h2g.nn.a", False, ["h2g.ops.edge"]),
    ("from .a import b", "h2g.nn", True, ["h2g.nn.a.b"]),
  ],
)
def test_imports_are_found_however_they_are_written(source, module, is_package, expected):
  assert imported(source, module, is_package) == expected


def draw() -> str:
  """Each part with the parts that it really imports today."""
  seen = {part: set() for part in ARROWS}
  for part, name in edges():
    target = part_of(name)
    if target in ARROWS and target != part and part in seen:
      seen[part].add(target)
  lines = ["errors < ops < graph < nn, data < models, convert < experiments", ""]
  for part in ARROWS:
    here = [other for other in ARROWS if other in seen[part]]
    lines.append(f"  {part:<12} <- {', '.join(here) or '-'}")
  return "\n".join(lines)


if __name__ == "__main__":
  print(draw())
