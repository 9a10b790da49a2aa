"""A call: its arrays, its static half, and what devices and arrays are refused."""

from collections.abc import Callable
import dataclasses
import math
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp

from h2g.ops import dispatch
from h2g.ops.block_lists import Lists
from h2g.ops.masks import Mask

ROWS = 64  # of a warpgroup
LOG2E = math.log2(math.e)
WIDTHS = (64, 128)


@dataclasses.dataclass(frozen=True)
class Config:
  """The static half of a call (hashable).

  Attributes:
    name: of the implementation, for messages.
    scale: multiplies q.k.
    softcap: logits become softcap * tanh(logits / softcap); None leaves them.
    hook: `hook(logit, batch, head, query, key) -> logit`, elementwise, after the cap; None.
    tile_q: queries per tile, 64 or 128.
    tile_k: keys per tile, 64 or 128.
    interpreted: kernels run in the interpreter; here so that programs of both kinds are told apart.
  """

  name: str
  scale: float
  softcap: float | None
  hook: Callable[..., Array] | None
  tile_q: int
  tile_k: int
  interpreted: bool = dataclasses.field(default_factory=dispatch.interpreted)

  @property
  def plain(self) -> bool:
    """Whether logits are scale * q.k + bias and nothing else."""
    return self.softcap is None and self.hook is None


class Call(NamedTuple):
  """The arrays of a call.

  Attributes:
    q: [B, T, H, D].
    k: [B, S, K, D].
    v: [B, S, K, E].
    bias: [B|1, H|1, T|1, S|1] float or None.
    sinks: [H] or None.
    mask: Mask or None, evaluated in PARTIAL tiles.
    origin: [2] int32, global numbers of batch entry 0 and head 0, for the hook; None for (0, 0).
    by_query: tiles of keys for each tile of queries; L is 1 or K.
    by_key: tiles of queries for each tile of keys.
    table: int32 [B|1, L, N, M] that the lists were made from; needed with a bias.
  """

  q: Array
  k: Array
  v: Array
  bias: Array | None
  sinks: Array | None
  mask: Mask | None
  origin: Array | None
  by_query: Lists
  by_key: Lists
  table: Array | None = None


def refuse(name: str, argument: str, reason: str):
  """Raises NotImplementedError in the words that all refusals use."""
  raise NotImplementedError(f"{name} cannot serve {argument}: {reason}")


def check(name: str, q: Array, v: Array) -> None:
  """Refuses devices, dtypes and widths that the kernels do not take."""
  dispatch.require(name, "gpu")
  if jax.default_backend() == "gpu" and not dispatch.interpreted():
    found = getattr(jax.devices()[0], "compute_capability", "unknown")
    if found != "9.0":
      refuse(name, "this device", f"compute capability 9.0 only, not {found}")
  if q.dtype not in (jnp.bfloat16, jnp.float16):
    refuse(name, "q", f"bfloat16 or float16 only, not {q.dtype}")
  for argument, x in (("q", q), ("v", v)):
    if x.shape[3] > max(WIDTHS):
      refuse(name, argument, f"widths up to {max(WIDTHS)}, not {x.shape[3]}")
