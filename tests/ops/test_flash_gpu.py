"""GPU kernels of attention: they lower for Hopper, agree where they can run, refuse the rest."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from h2g.ops import dispatch
from h2g.ops import masks
from h2g.ops.attention import attention
from tests.ops import interpreted_flash

MAIN = pathlib.Path(__file__).parents[2]


def lowered(function, *shapes) -> str:
  """The exported program, forward and backward, for CUDA."""

  def total(*arrays):
    leaves = jax.tree.leaves(function(*arrays))
    return sum(x.astype(jnp.float32).sum() for x in leaves)

  gradients = jax.jit(jax.value_and_grad(total, tuple(range(len(shapes)))))
  with dispatch.lowering_for("gpu"):
    exported = jax.export.export(gradients, platforms=["cuda"])(
      *(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes)
    )
  return exported.mlir_module()


def operands(num_queries, heads=8, key_heads=8, depth=64, batch=1, dtype=jnp.bfloat16):
  keys = (batch, num_queries, key_heads, depth)
  return [((batch, num_queries, heads, depth), dtype), (keys, dtype), (keys, dtype)]


def eight_documents(length):
  return jnp.asarray(np.arange(length)[None, :] * 8 // length, jnp.int32)


def tenth(length):
  return np.random.default_rng(0).random((1, 1, length // 128, length // 128)) < 0.1


# The shapes that experiments/speed times: name: (operands, options, more operands by name).
BENCHMARK = dict(
  d64=(operands(2048), {}, {}),
  d128=(operands(16384, depth=128), {}, {}),
  causal=(operands(4096, depth=128), dict(mask=masks.causal()), {}),
  causal_d64=(operands(16384), dict(mask=masks.causal()), {}),
  grouped=(operands(4096, 64, 8, 128), dict(mask=masks.causal()), {}),
  half=(operands(2048, dtype=jnp.float16), dict(mask=masks.causal(), return_lse=True), {}),
  bias=(operands(1024), {}, dict(bias=((1, 8, 1024, 1024), jnp.float32))),
  bias_by_batch=(
    operands(1024, batch=2),
    dict(mask=masks.causal()),
    dict(bias=((1, 8, 1024, 1024), jnp.bfloat16)),
  ),
  window=(operands(4096), dict(mask=masks.window(128)), {}),
  wide_window=(operands(16384, 64, 8), dict(mask=masks.window(1024)), {}),
  documents=(
    operands(8192),
    dict(mask=masks.segments(eight_documents(8192)) & masks.causal()),
    {},
  ),
  blocks=(operands(8192), dict(mask=masks.block_table(tenth(8192), 128, 128)), {}),
  device_blocks=(
    operands(2048),
    dict(mask=masks.block_table(jnp.asarray(tenth(2048)), 128, 128) & masks.causal()),
    {},
  ),
  capped=(operands(2048, depth=128), dict(softcap=30.0), dict(sinks=((8,), jnp.float32))),
)


@pytest.mark.few("d64", "causal", "grouped", "bias_by_batch", "documents", "capped")
@pytest.mark.lowering
@pytest.mark.parametrize("case", BENCHMARK)
def test_benchmark_shapes_lower_for_cuda(case):
  shapes, options, further = BENCHMARK[case]

  def function(q, k, v, *rest):
    named = dict(zip(further, rest))
    return attention(q, k, v, **options, **named, implementation="mosaic_gpu")

  text = lowered(function, *shapes, *further.values())
  kernels = 4 if case.startswith("bias") else 3
  assert text.count("stablehlo.custom_call @mosaic_gpu") == kernels


@pytest.mark.few(6)
@pytest.mark.lowering
@pytest.mark.parametrize("case", interpreted_flash.CASES)
def test_everything_served_lowers_for_cuda(case):
  num_queries, num_keys, depth, width, options, further = interpreted_flash.CASES[case]
  batch, heads, key_heads = interpreted_flash.B, interpreted_flash.H, interpreted_flash.K

  def function(q, k, v, *rest):
    named = dict(zip(further, rest))
    return attention(q, k, v, **options, **named, return_lse=True, implementation="mosaic_gpu")

  arrays = (
    (batch, num_queries, heads, depth),
    (batch, num_keys, key_heads, depth),
    (batch, num_keys, key_heads, width),
    *further.values(),
  )
  lowered(function, *((shape, jnp.bfloat16) for shape in arrays))


@pytest.mark.lowering
def test_vmap_lowers_for_cuda():
  shapes = [((3, *shape), dtype) for shape, dtype in operands(256, 2, 2)]
  function = lambda *arrays: attention(*arrays, mask=masks.causal(), implementation="mosaic_gpu")
  lowered(jax.vmap(function), *shapes)


@pytest.mark.lowering
def test_two_shards_lower_for_cuda():
  mesh = Mesh(np.array(jax.devices()[:2]), ("x",))
  layout = NamedSharding(mesh, PartitionSpec("x", None, None, None))

  def total(*arrays):
    out = attention(*arrays, mask=masks.causal(), sharding=layout, implementation="mosaic_gpu")
    return out.astype(jnp.float32).sum()

  shapes = [
    jax.ShapeDtypeStruct(shape, dtype, sharding=layout)
    for shape, dtype in operands(256, 2, 2, batch=2)
  ]
  with dispatch.lowering_for("gpu"):
    exported = jax.export.export(jax.jit(jax.grad(total)), platforms=["cuda"])(*shapes)
  assert exported.nr_devices == 2
  assert "all_gather" not in exported.mlir_module()


def run_cases(*names, device="cpu"):
  environment = dict(os.environ, PYTHONPATH=str(MAIN), JAX_PLATFORMS=device)
  environment.pop("XLA_FLAGS", None)
  command = [sys.executable, "-m", "tests.ops.interpreted_flash", *names]
  done = subprocess.run(command, cwd=MAIN, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr[-4000:]


needs_interpreter = pytest.mark.skipif(
  jax.__version_info__ < (0, 11),
  reason="the interpreter before JAX 0.11 compiles inside of callbacks, where it can deadlock",
)


@needs_interpreter
@pytest.mark.smoke
def test_kernels_agree_in_the_interpreter():
  run_cases(*interpreted_flash.FAST)


@needs_interpreter
@pytest.mark.slow
def test_all_cases_agree_in_the_interpreter():
  run_cases()


@pytest.mark.gpu
def test_kernels_agree_on_a_gpu():
  look = "import jax; print(*(getattr(d, 'compute_capability', '') for d in jax.devices()))"
  environment = dict(os.environ, JAX_PLATFORMS="")
  found = subprocess.run(
    [sys.executable, "-c", look], env=environment, capture_output=True, text=True
  ).stdout
  if "9.0" not in found.split():
    pytest.skip("no GPU of the Hopper generation")
  run_cases(device="cuda")


REFUSED = dict(
  q=dict(dtype=jnp.float32),
  v=dict(width=192),
  mask=dict(mask=masks.block_table(np.ones((1, 1, 2, 1), bool), 32, 64)),
  logits_fn=dict(logits_fn=lambda logits, indices: jnp.tanh(logits)),
  logits_args=dict(logits_fn=lambda logits, indices, a: logits + a, logits_args=(jnp.ones(()),)),
  dropout_rate=dict(dropout_rate=0.1, dropout_key=jax.random.key(0)),
  return_column_mass=dict(return_column_mass=True),
  return_entropy=dict(return_entropy=True),
  top_keys=dict(top_keys=2),
)


@pytest.mark.parametrize("argument", REFUSED)
def test_what_is_not_served_is_refused(argument):
  options = dict(REFUSED[argument])
  dtype, width = options.pop("dtype", jnp.bfloat16), options.pop("width", 64)
  q, v = jnp.zeros((1, 64, 2, 64), dtype), jnp.zeros((1, 64, 2, width), dtype)
  with (
    dispatch.lowering_for("gpu"),
    pytest.raises(NotImplementedError, match=f"mosaic_gpu cannot serve {argument}"),
  ):
    jax.eval_shape(lambda: attention(q, q, v, implementation="mosaic_gpu", **options))


def test_other_platforms_are_refused():
  q = jnp.zeros((1, 64, 2, 64), jnp.bfloat16)
  with pytest.raises(NotImplementedError, match="mosaic_gpu serves gpu"):
    attention(q, q, q, implementation="mosaic_gpu")
