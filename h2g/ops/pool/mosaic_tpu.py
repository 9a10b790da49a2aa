"""Multi-query pooling on a TPU: all tokens of an image in VMEM, read once, forward and backward.

Plan. The grid is over groups of images. Of each image the products with all queries, the softmax
and the weighted sums are made while its tokens stand in VMEM; out come the sums [Q, D] and the
weights, and XLA projects the sums. Backward the same, from the saved weights: with g and a the
cotangents of sums and weights,

  dw = g x' + a,   ds = w * (dw - sum_n w dw),   dx = ds' q + w' g,   dq = sum_b ds x

and dq stays in VMEM from the first image to the last.

Bytes: B N D size of tokens once forward; backward they are read and dx is written, 2 B N D size;
beside them Q / N as much of sums and of weights. XLA's form reads tokens twice forward. Flops: 4 B
Q N D forward and 8 B Q N D backward, with Q and N in whole tiles. At B 512, N 196, D 768, Q 32,
bfloat16: 154 MB and 13 GFLOP (N 256) forward, so the memory is the floor. Rates: not measured.
"""

import functools

import jax
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from h2g.ops import dispatch
from h2g.ops.pool.call import own_slices
from h2g.ops.pool.call import PoolOut

NAME = "mosaic_tpu"
LANES = 128
VMEM = 14 * 2**20


def multi_query_pool(x: Array, queries: Array, values: Array, mask, scale: float) -> PoolOut:
  """See `h2g.ops.pool.multi_query_pool`. Serves float32 and bfloat16."""
  dispatch.require(NAME, "tpu")
  if x.dtype not in (jnp.float32, jnp.bfloat16):
    raise NotImplementedError(f"{NAME} serves float32 and bfloat16: x is {x.dtype}")
  if not x.size:
    raise NotImplementedError(f"{NAME} serves images with tokens: x is {x.shape}")
  images = _images(x.shape, len(queries), x.dtype.itemsize)
  scaled = (queries.astype(jnp.float32) * scale).astype(x.dtype)
  if mask is not None:
    mask = mask[:, None].astype(jnp.int32)
  mean, weights = _pool(images, x, scaled, mask)
  return PoolOut(own_slices(mean, values, jnp.float32), weights)


def _images(shape: tuple[int, int, int], queries: int, size: int) -> int:
  """Images of a grid step: as many as VMEM holds and B divides into, eight at the most."""
  batch, tokens, dim = shape
  rows = -(-tokens // LANES) * LANES
  # Backward: tokens and their gradient, sums' cotangents, weights and theirs, in two buffers each;
  # float32 tiles of one image; queries and their gradient.
  each = 2 * (2 * rows * dim * size + queries * (dim * size + 2 * rows * 4))
  fixed = 4 * (rows * dim + 4 * queries * rows) + 4 * queries * dim * 4
  found = next((n for n in (8, 4, 2, 1) if batch % n == 0 and fixed + n * each <= VMEM), None)
  if found is None:
    raise NotImplementedError(
      f"{NAME} holds all tokens of an image in VMEM: {tokens} of width {dim} and {queries} queries "
      f"need {fixed + each >> 20} MiB of {VMEM >> 20}"
    )
  return found


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pool(images: int, x: Array, queries: Array, mask: Array | None) -> tuple[Array, Array]:
  """(sums [B, Q, D] like x, weights [B, Q, N] float32) for scaled queries and a mask [B, 1, N]."""
  batch, total, dim = x.shape
  num = len(queries)
  return _call(
    functools.partial(_forward, total=total, masked=mask is not None),
    images,
    [("tokens", x), ("queries", queries), *([] if mask is None else [("maps", mask)])],
    [
      ("sums", jax.ShapeDtypeStruct((batch, num, dim), x.dtype)),
      ("maps", jax.ShapeDtypeStruct((batch, num, total), jnp.float32)),
    ],
  )


def _pool_forward(images: int, x: Array, queries: Array, mask: Array | None):
  mean, weights = _pool(images, x, queries, mask)
  return (mean, weights), (x, queries, weights)


def _pool_backward(images: int, saved, cotangents):
  x, queries, weights = saved
  g_mean, g_weights = cotangents
  dx, dq = _call(
    functools.partial(_backward, total=x.shape[1]),
    images,
    [
      ("tokens", x),
      ("queries", queries),
      ("maps", weights),
      ("sums", g_mean),
      ("maps", g_weights),
    ],
    [
      ("tokens", jax.ShapeDtypeStruct(x.shape, x.dtype)),
      ("queries", jax.ShapeDtypeStruct(queries.shape, jnp.float32)),
    ],
  )
  return dx, dq.astype(queries.dtype), None


_pool.defvjp(_pool_forward, _pool_backward)


def _call(kernel, images: int, operands, results):
  """The kernel over groups of images; operands and results are (kind, array or its shape).

  Kinds: tokens [B, N, D], maps [B, .., N], sums [B, Q, D], and queries [Q, D], whole in every step.
  """
  batch, total, dim = operands[0][1].shape
  rows = -(-total // LANES) * LANES

  def spec(kind: str, array) -> pl.BlockSpec:
    if kind == "queries":
      return pl.BlockSpec(array.shape, lambda b: (0, 0))
    tail = dict(tokens=(rows, dim), maps=(array.shape[1], rows), sums=array.shape[1:])[kind]
    return pl.BlockSpec((images, *tail), lambda b: (b, 0, 0))

  return pl.pallas_call(
    kernel,
    grid=(batch // images,),
    in_specs=[spec(*operand) for operand in operands],
    out_specs=[spec(*result) for result in results],
    out_shape=[shape for _, shape in results],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("arbitrary",), vmem_limit_bytes=2 * VMEM
    ),
    interpret=dispatch.interpreted(),
  )(*(array for _, array in operands))


def _forward(x, queries, *refs, total: int, masked: bool):
  mask, mean, weights = refs if masked else (None, *refs)
  for image in range(len(x)):
    tokens = _up_to(total, x[image], axis=0)
    scores = _dot(queries[...], tokens, 1, 1)
    allowed = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1) < total
    if masked:
      allowed &= mask[image] != 0
    scores = jnp.where(allowed, scores, -jnp.inf)
    top = scores.max(1, keepdims=True)
    exps = jnp.exp(scores - jnp.where(top > -jnp.inf, top, 0.0))
    sums = exps.sum(1, keepdims=True)
    found = exps / jnp.where(sums > 0, sums, 1.0)
    weights[image] = found
    mean[image] = _dot(found.astype(tokens.dtype), tokens, 1, 0).astype(mean.dtype)


def _backward(x, queries, weights, g_mean, g_weights, dx, dq, *, total: int):
  @pl.when(pl.program_id(0) == 0)
  def _():
    dq[...] = jnp.zeros_like(dq)

  for image in range(len(x)):
    tokens = _up_to(total, x[image], axis=0)
    w, g = _up_to(total, weights[image], axis=1), g_mean[image]
    d_weights = _dot(g, tokens, 1, 1) + _up_to(total, g_weights[image], axis=1)
    d_scores = w * (d_weights - (w * d_weights).sum(1, keepdims=True))
    d_scores, w = d_scores.astype(tokens.dtype), w.astype(tokens.dtype)
    dx[image] = (_dot(d_scores, queries[...], 0, 0) + _dot(w, g, 0, 0)).astype(dx.dtype)
    dq[...] += _dot(d_scores, tokens, 1, 0)


def _up_to(total: int, x: Array, axis: int) -> Array:
  """Zeros behind the first `total`, whatever stands there."""
  if x.shape[axis] == total:
    return x
  at = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)
  return jnp.where(at < total, x, jnp.zeros_like(x))


def _dot(a: Array, b: Array, axis_a: int, axis_b: int) -> Array:
  """Operands of one dtype; float32 out."""
  return jax.lax.dot_general(
    a,
    b,
    (((axis_a,), (axis_b,)), ((), ())),
    precision=jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None,
    preferred_element_type=jnp.float32,
  )
