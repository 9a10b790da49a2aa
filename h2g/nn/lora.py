"""Low-rank adaptation: a frozen matrix, and a small product that is trained beside it."""

from collections.abc import Callable
from typing import Any

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp


class LoRADense(nnx.Module):
  """x W + (alpha / r) (x A) B, without bias; B starts at zero, so nothing changes at first.

  Rank 0 is the plain matrix. What is trained is chosen by name: see `partition`.

  Source: arXiv 2106.09685 eq. 3.
  """

  def __init__(
    self, inputs: int, outputs: int, *, rank=0, alpha=16.0, scale: float = 0.02, rngs: nnx.Rngs
  ):
    normal = lambda shape, scale: nnx.Param(scale * jax.random.normal(rngs.params(), shape))
    self.kernel = normal((inputs, outputs), scale)
    self.lora_a = normal((inputs, rank), inputs**-0.5) if rank else None
    self.lora_b = nnx.Param(jnp.zeros((rank, outputs))) if rank else None
    self.gain = alpha / rank if rank else 0.0

  def __call__(self, x: Array) -> Array:
    y = x @ self.kernel[...].astype(x.dtype)
    if self.lora_a is None:
      return y
    low = x @ self.lora_a[...].astype(x.dtype)
    return y + self.gain * (low @ self.lora_b[...].astype(x.dtype))


def partition(params: dict, trained: Callable[[str], bool]) -> tuple[dict, dict]:
  """Nested dicts in two: leaves whose path (`a/b/kernel`) is `trained`, and the others."""

  def take(tree: dict, wanted: bool, path: str = "") -> dict:
    found = {}
    for name, leaf in tree.items():
      here = f"{path}/{name}" if path else str(name)
      if isinstance(leaf, dict):
        if inside := take(leaf, wanted, here):
          found[name] = inside
      elif trained(here) == wanted:
        found[name] = leaf
    return found

  return take(params, True), take(params, False)


def join(first: Any, second: Any) -> Any:
  """Nested dicts in one; the inverse of `partition`. Leaves of `first` win."""
  if not isinstance(first, dict) or not isinstance(second, dict):
    return first
  found = dict(second)
  for name, value in first.items():
    found[name] = join(value, second[name]) if name in second else value
  return found
