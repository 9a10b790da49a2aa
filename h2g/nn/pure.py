"""A module as two pure functions, the form the trainer and JAX transformations want."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

from flax import nnx
import jax
from jax import Array


class Pure(NamedTuple):
  """`init(key) -> (params, rest)` and `bind(params, rest) -> module`, both traceable.

  `params` and `rest` are nested dicts of arrays: trainable parameters, and all other variables.
  """

  init: Callable[[Array], tuple[Any, Any]]
  bind: Callable[[Any, Any], nnx.Module]


def pure(make: Callable[[nnx.Rngs], nnx.Module]) -> Pure:
  """Splits a module's structure (kept here, static) from its arrays (explicit state).

  Args:
    make: builds the module from `nnx.Rngs`; called abstractly once here, and inside `init`.
  Returns:
    `Pure`. `bind` makes a fresh module at every call, so nothing is mutated across a trace:

      model = pure(lambda rngs: nnx.Linear(2, 3, rngs=rngs))
      params, rest = model.init(jax.random.key(0))
      y = model.bind(params, rest)(x)
  """
  structure = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(params=jax.random.key(0)))))[0]

  def init(key: Array) -> tuple[Any, Any]:
    _, params, rest = nnx.split(make(nnx.Rngs(params=key)), nnx.Param, ...)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(rest)

  def bind(params: Any, rest: Any) -> nnx.Module:
    return nnx.merge(structure, params, rest)

  return Pure(init, bind)


def rest_of(module: nnx.Module) -> Any:
  """The other state of a bound module after a call that changed it (running statistics)."""
  return nnx.to_pure_dict(nnx.split(module, nnx.Param, ...)[2])


def forward(model: Pure, params: Any, rest: Any, x: Any, training: bool) -> tuple[Any, Any]:
  """(module(x), other state after the call) in the mode of training or of evaluation."""
  module = model.bind(params, rest)
  (module.train if training else module.eval)()
  return module(x), rest_of(module)
