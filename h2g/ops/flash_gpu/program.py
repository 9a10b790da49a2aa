"""What a mask or a hook computes inside a kernel: checked beforehand, lowered everywhere."""

from collections.abc import Callable
import functools
from typing import Any

import jax
from jax import Array
import jax.extend.core
import jax.numpy as jnp

from h2g.ops import block_lists
from h2g.ops.flash_gpu.call import Call
from h2g.ops.flash_gpu.call import Config
from h2g.ops.flash_gpu.call import refuse
from h2g.ops.flash_gpu.call import ROWS

# What a tile of a mask or of a hook may compute: elementwise, on arrays of one shape and scalars.
# The hardware's approximations of tanh, sin and cos are too coarse to be here.
_ELEMENTWISE = frozenset(
  """abs add add_any and broadcast_in_dim convert_element_type div eq exp exp2 ge gt integer_pow
  jit le log lt max min mul ne neg not or pjit rem rsqrt select_n sign square sub xor""".split()  # noqa: SIM905
)


def check_program(call: Call, config: Config) -> None:
  """Refuses masks and hooks that compute what the kernel language lacks."""
  program = block_lists.mask_program(call.mask, config.tile_q, config.tile_k, config.name)
  whole = lambda dtype: jax.ShapeDtypeStruct((ROWS, ROWS), dtype)
  index, scalar = whole(jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
  if program.attends is not None:
    single = lambda x, block: block is not None or x.shape[2] == x.shape[3] == 1
    loaded = [
      scalar if single(x, block) else index for x, block in zip(program.arrays, program.blocks)
    ]
    _check_elementwise(config.name, "mask", program.attends, index, index, scalar, scalar, loaded)
  if config.hook is not None:
    slope = functools.partial(with_slope, config.hook)
    arguments = (whole(jnp.float32), scalar, scalar, index, index)
    _check_elementwise(config.name, "logits_fn", slope, *arguments)


def with_slope(hook, x: Array, *places) -> tuple[Array, Array]:
  """(hook of x, its derivative by x)."""
  return jax.jvp(lambda x: hook(x, *places), (x,), (jnp.ones_like(x),))


def _check_elementwise(name: str, argument: str, function, *arguments) -> None:
  try:
    traced = jax.make_jaxpr(function)(*arguments)
  except (TypeError, ValueError, IndexError) as error:
    refuse(name, argument, f"it does not take tiles of rank 2 ({error})")
  if traced.consts:
    refuse(name, argument, "a function of indices that reads arrays")
  shapes = {x.aval.shape for x in traced.jaxpr.outvars}
  if not shapes <= {(), (ROWS, ROWS)}:
    refuse(name, argument, f"it gives shapes {sorted(shapes)} for a tile {(ROWS, ROWS)}")

  def walk(jaxpr):
    for equation in jaxpr.eqns:
      if equation.primitive.name not in _ELEMENTWISE:
        refuse(name, argument, f"{equation.primitive.name} does not run in the kernel")
      if "jaxpr" in equation.params:
        walk(equation.params["jaxpr"].jaxpr)

  walk(traced.jaxpr)


def lowerable(function: Callable[..., Any]) -> Callable[..., Any]:
  """The same function, in primitives that every supported version lowers in kernels."""

  def evaluate(jaxpr, *values):
    env = dict(zip(jaxpr.invars, values))
    read = lambda x: x.val if isinstance(x, jax.extend.core.Literal) else env[x]
    for equation in jaxpr.eqns:
      inputs, name = [read(x) for x in equation.invars], equation.primitive.name
      if name in ("jit", "pjit"):
        outputs = evaluate(equation.params["jaxpr"].jaxpr, *inputs)
      elif name == "not" and equation.invars[0].aval.dtype == jnp.bool_:
        outputs = [inputs[0] ^ True]
      elif name == "add_any":
        outputs = [inputs[0] + inputs[1]]
      else:
        outputs = equation.primitive.bind(*inputs, **equation.params)
        outputs = outputs if equation.primitive.multiple_results else [outputs]
      env.update(zip(equation.outvars, outputs))
    return [read(x) for x in jaxpr.outvars]

  def run(*arguments):
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    results = evaluate(traced.jaxpr, *jax.tree.leaves(arguments))
    return jax.tree.unflatten(jax.tree.structure(shapes), results)

  return run
