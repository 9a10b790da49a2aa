"""Names of a checkpoint onto the paths of a parameter tree."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
import re
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from h2g.errors import InputError

SHOWN = 8  # names of each kind in an error


class Rule(NamedTuple):
  """Where the tensors of some names go.

  pattern: regular expression that a whole name must match.
  path: ours, `blocks/0/norm/scale`, with `\\1` for the pattern's groups; None drops the tensor.
  transform: of the array, None leaves it.

  All rules that match a name apply: three rules cut one tensor of queries, keys and values.
  """

  pattern: str
  path: str | None
  transform: Callable[[np.ndarray], np.ndarray] | None = None


def fill(tree: Any, tensors: Mapping[str, np.ndarray], table: Iterable[Rule], *, source) -> Any:
  """The tree with every leaf taken from a checkpoint.

  Args:
    tree: pytree of arrays or `jax.ShapeDtypeStruct`.
    tensors: {name: array}, as from `read`.
    table: rules; each tensor must match one, each leaf be reached by exactly one.
    source: the file, for messages.
  Returns:
    A tree like `tree` of NumPy arrays in its dtypes.
  Raises:
    InputError: leaves that no tensor reaches, tensors that go nowhere, shapes that disagree: one
      line lists all three, as for a checkpoint of another architecture.
  """
  leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
  wanted = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
  table = [rule._replace(pattern=re.compile(rule.pattern)) for rule in table]
  found, unexpected, mismatched = {}, [], []
  for name, array in sorted(tensors.items()):
    matches = [(rule, match) for rule in table if (match := rule.pattern.fullmatch(name))]
    paths = [(rule, match.expand(rule.path)) for rule, match in matches if rule.path is not None]
    if not matches or any(path not in wanted or path in found for _, path in paths):
      unexpected.append(f"{name} {array.shape}")
      continue
    for rule, path in paths:
      try:
        value = np.asarray(array if rule.transform is None else rule.transform(array))
      except (ValueError, IndexError):  # of a rank or size that cannot be turned or cut
        value = array
      found[path] = value.astype(wanted[path].dtype)
      if value.shape != wanted[path].shape:
        mismatched.append(f"{name} {array.shape} for {path} {wanted[path].shape}")
  missing = [f"{path} {leaf.shape}" for path, leaf in wanted.items() if path not in found]
  kinds = {"missing": missing, "unexpected": unexpected, "mismatched": mismatched}
  if any(kinds.values()):
    listed = "; ".join(f"{kind}: {_some(names)}" for kind, names in kinds.items() if names)
    raise InputError(f"{source} does not fit this network: {listed}")
  return jax.tree.unflatten(structure, [found[path] for path in wanted])


def _some(names: list[str]) -> str:
  more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
  return f"{len(names)}, {', '.join(names[:SHOWN])}{more}"
