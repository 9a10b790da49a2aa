"""Which implementation serves a call, and on which platform we believe to be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from h2g.ops import dispatch
from h2g.ops.edge import build_edge_index
from h2g.ops.edge import edge_attention
from h2g.ops.typed import typed_linear

ORDER = dict(cpu=("kernel", "xla"), gpu=("kernel", "xla"), tpu=("kernel",))


def kernel(x, *, sign=1):
  if sign < 0:
    raise NotImplementedError("'kernel' serves no negative sign")
  return "kernel", sign * x


def xla(x, *, sign=1):
  return "xla", sign * x


def choose(implementation=None, **options):
  return dispatch.choose("op", dict(kernel=kernel, xla=xla), ORDER, implementation, 3, **options)


@pytest.mark.smoke
def test_the_first_that_serves_the_call_is_taken():
  assert choose() == ("kernel", 3)
  assert choose(sign=-1) == ("xla", -3)


def test_a_name_means_that_one_or_its_error():
  assert choose("xla") == ("xla", 3)
  with pytest.raises(NotImplementedError, match="'kernel' serves no negative sign"):
    choose("kernel", sign=-1)
  with pytest.raises(NotImplementedError, match="op has no implementation 'fast': there are kern"):
    choose("fast")


def test_if_all_decline_their_reasons_are_told():
  with dispatch.lowering_for("tpu"), pytest.raises(NotImplementedError) as caught:
    choose(sign=-1)
  assert str(caught.value) == (
    "no implementation of op serves this call (kernel: 'kernel' serves no negative sign)"
  )


def test_errors_of_an_implementation_are_not_swallowed():
  def broken():
    raise ValueError("shapes disagree")

  with pytest.raises(ValueError, match="shapes disagree"):
    dispatch.choose("op", dict(xla=broken), dict(cpu=("xla",)), None)


def test_the_platform_can_be_set_for_lowering():
  here = dispatch.platform()
  with dispatch.lowering_for("cuda"):
    assert dispatch.platform() == "gpu"
    with dispatch.lowering_for("tpu"):
      assert dispatch.platform() == "tpu"
    assert dispatch.platform() == "gpu"
  assert dispatch.platform() == here


@pytest.mark.parametrize("target", ["cuda", "tpu"])
def test_edge_and_typed_lower_for_accelerators_without_one(target):
  """Forward and backward, under vmap over seeds with the graph shared."""
  rng = np.random.default_rng(0)
  index = build_edge_index(rng.integers(0, 50, 300), rng.integers(0, 40, 300), 50, 40, capacity=320)

  def loss(q, k, w):
    out = edge_attention(q, k, k, index, clip=5.0)
    return jnp.sum(typed_linear(out.reshape(40, -1), w, offsets=(0, 7, 40)))

  step = jax.jit(jax.vmap(jax.grad(loss, (0, 1, 2))))
  shapes = [
    jax.ShapeDtypeStruct(shape, jnp.float32)
    for shape in ((3, 40, 2, 8), (3, 50, 2, 8), (3, 2, 16, 4))
  ]
  with dispatch.lowering_for(target):
    exported = jax.export.export(step, platforms=[target])(*shapes)
  assert exported.platforms == (target,)
  assert [x.shape for x in exported.out_avals] == [x.shape for x in shapes]
