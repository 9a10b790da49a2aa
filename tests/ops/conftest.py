"""Kernels in JAX's interpreters."""

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu
import pytest

from h2g.ops import dispatch


@pytest.fixture
def interpreted():
  with dispatch.interpreting():
    yield


@pytest.fixture
def interpreted_gpu():
  if not hasattr(plgpu, "InterpretGPUParams"):
    pytest.skip(f"jax {jax.__version__} has no interpreter for Mosaic GPU kernels")
  with dispatch.interpreting():
    yield


@pytest.fixture
def interpreted_or_lowered(request):
  """For a whole module: what lowers a kernel, or runs it natively, is left alone."""
  if "lowering" in request.keywords or "native" in request.node.name:
    yield
    return
  with dispatch.interpreting():
    yield
