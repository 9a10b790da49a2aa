"""Sampling between pixels: signatures, checks, choice of implementation."""

from jax import Array
import jax.numpy as jnp

from h2g.ops import dispatch
from h2g.ops.deform import reference
from h2g.ops.deform import xla
from h2g.ops.tiles import accumulator_dtype

IMPLEMENTATIONS = dict(xla=xla.bilinear, reference=reference.bilinear)
ORDER = dict.fromkeys(("cpu", "gpu", "tpu"), ("xla",))


def bilinear(x: Array, points: Array, *, implementation: str | None = None) -> Array:
  """Images at points between their pixels; zero outside.

    out[b,p] = sum_ij max(0, 1 - |points[b,p,0] - i|) max(0, 1 - |points[b,p,1] - j|) x[b,i,j]

  Axes: B images, P points, C channels.

  Args:
    x: [B, height, width, C] float.
    points: [B, P, 2] float, (row, column) in pixels: (0, 0) is the centre of the first.
      Differentiable between pixels.
    implementation: "xla", "reference", or None for the best.
  Returns:
    [B, P, C] in x's dtype; accumulated in float32.
  Raises:
    ValueError: shapes disagree.
  """
  if x.ndim != 4 or points.ndim != 3 or points.shape[2] != 2 or len(points) != len(x):
    raise ValueError(f"x {x.shape} and points {points.shape} must be [B, h, w, C] and [B, P, 2]")
  points = points.astype(accumulator_dtype(x))
  out = dispatch.choose("bilinear", IMPLEMENTATIONS, ORDER, implementation, x, points)
  return out.astype(x.dtype)


def deform_conv(
  x: Array,
  kernel: Array,
  offsets: Array,
  weights: Array | None = None,
  *,
  stride: int = 1,
  padding: int = 0,
  implementation: str | None = None,
) -> Array:
  """Modulated deformable convolution: each tap is read beside its place, and weighted.

    out[b,p] = sum_k kernel[k] weights[b,p,k] x(b, stride p - padding + k + offsets[b,p,k])

  p = (i, j) is a place in the output, k = (row, column) a tap; x between pixels is `bilinear`. With
  no offsets and unit weights it is a plain convolution.

  Axes: B images, K x K taps, row by row, C channels in, E channels out.

  Args:
    x: [B, height, width, C] float.
    kernel: [K, K, C, E] like x.
    offsets: [B, height', width', K * K, 2] float, (down, right) in pixels, where height' =
      (height + 2 padding - K) // stride + 1.
    weights: [B, height', width', K * K] float, or None for ones.
    stride, padding: pixels; zeros around.
    implementation: of `bilinear`.
  Returns:
    [B, height', width', E] in x's dtype.
  Raises:
    ValueError: shapes disagree.
  Source: arXiv 1703.06211 eq. 2-4; weights: arXiv 1811.11168 eq. 1.
  """
  b, height, width, channels = x.shape
  size = kernel.shape[0]
  rows, columns = ((n + 2 * padding - size) // stride + 1 for n in (height, width))
  if kernel.shape[:3] != (size, size, channels):
    raise ValueError(f"kernel {kernel.shape} must be [K, K, C, E] for x {x.shape}")
  if offsets.shape != (b, rows, columns, size**2, 2):
    raise ValueError(f"offsets {offsets.shape} must be {(b, rows, columns, size**2, 2)}")
  if weights is not None and weights.shape != offsets.shape[:-1]:
    raise ValueError(f"weights {weights.shape} must be {offsets.shape[:-1]}")
  dtype = accumulator_dtype(x)
  grid = lambda *axes: jnp.stack(jnp.meshgrid(*axes, indexing="ij"), -1)
  at = grid(*(jnp.arange(n) * stride - padding for n in (rows, columns)))
  taps = grid(jnp.arange(size), jnp.arange(size)).reshape(1, 1, -1, 2)
  points = (at[:, :, None] + taps)[None].astype(dtype) + offsets.astype(dtype)
  read = bilinear(x, points.reshape(b, -1, 2), implementation=implementation)
  read = read.reshape(b, rows, columns, size**2, channels)
  if weights is not None:
    read = read * weights[..., None].astype(x.dtype)
  return read.reshape(b, rows, columns, -1) @ kernel.reshape(-1, kernel.shape[3])
