"""Which implementation serves a call. The only place that asks which platform this is."""

from collections.abc import Callable
from collections.abc import Mapping
import contextlib
import contextvars
from typing import Any

import jax

_PLATFORM = contextvars.ContextVar("h2g_platform", default=None)
_INTERPRETED = contextvars.ContextVar("h2g_interpreted", default=False)


def platform() -> str:
  """ "gpu", "tpu" or "cpu": the default backend, or what `lowering_for` says."""
  found = _PLATFORM.get() or jax.default_backend()
  return "gpu" if found in ("cuda", "rocm") else found


@contextlib.contextmanager
def lowering_for(name: str):
  """Within the context, calls are served as on that platform ("gpu", "tpu", "cpu").

  For `jax.export` of a program to a platform that is not at hand.
  """
  token = _PLATFORM.set(name)
  try:
    yield
  finally:
    _PLATFORM.reset(token)


def interpreted() -> bool:
  """Whether kernels run in Pallas' interpreter."""
  return _INTERPRETED.get()


@contextlib.contextmanager
def interpreting():
  """Within the context, named kernels run in Pallas' interpreter on any platform: slow, for tests.

  What was compiled by `jax.jit` outside the context is not compiled again inside it.
  """
  token = _INTERPRETED.set(True)
  try:
    yield
  finally:
    _INTERPRETED.reset(token)


def require(implementation: str, served: str) -> None:
  """Raises NotImplementedError unless this platform is `served`, or kernels are interpreted."""
  if platform() != served and not interpreted():
    raise NotImplementedError(
      f"{implementation} serves {served}, and this platform is {platform()}"
    )


def require_hopper(implementation: str) -> None:
  """`require` for kernels with wgmma, which compute capability 9 alone has.

  Where no GPU is at hand (lowering for one, interpreting), it is taken to be of that kind.
  """
  require(implementation, "gpu")
  if jax.default_backend() not in ("gpu", "cuda", "rocm"):
    return
  found = str(getattr(jax.devices()[0], "compute_capability", "unknown"))
  if found.split(".")[0] != "9":
    raise NotImplementedError(
      f"{implementation} serves compute capability 9 (Hopper), and this GPU's is {found}"
    )


def choose(
  op: str,
  implementations: Mapping[str, Callable[..., Any]],
  order: Mapping[str, tuple[str, ...]],
  implementation: str | None,
  *args,
  **kwargs,
):
  """Calls the named implementation, or the platform's first that serves the call exactly.

  Args:
    op: name of the operation, for messages.
    implementations: {name: function}; a function raises NotImplementedError, with the reason, for a
      call that it cannot serve exactly.
    order: {platform: names in order of preference}.
    implementation: a name means that one or its error; None walks the order.
    *args, **kwargs: of the call.
  Raises:
    NotImplementedError: the name is unknown, the named implementation declines, or all do; the
      message carries the reasons.
  """
  if implementation is not None:
    if implementation not in implementations:
      raise NotImplementedError(
        f"{op} has no implementation {implementation!r}: there are {', '.join(implementations)}"
      )
    return implementations[implementation](*args, **kwargs)
  reasons = []
  for name in order[platform()]:
    try:
      return implementations[name](*args, **kwargs)
    except NotImplementedError as error:
      reasons.append(f"{name}: {error}")
  raise NotImplementedError(f"no implementation of {op} serves this call ({'; '.join(reasons)})")
