"""The Daubechies-4 wavelet transform of signals, and the encoder of segments on it."""

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from h2g.errors import InputError
from h2g.nn.rotary import RMSNorm

# The low-pass filter of db4, by which a signal is convolved; four vanishing moments.
LOW = np.array([
  -0.010597401785069032, 0.0328830116668852, 0.030841381835560764, -0.18703481171909309,
  -0.027983769416859854, 0.6308807679298589, 0.7148465705529157, 0.2303778133088965,
])  # fmt: skip
HIGH = LOW[::-1] * np.array([-1.0, 1.0] * 4)
BOUNDARIES = ("periodization", "periodic")


def max_level(length: int) -> int:
  """Levels after which a signal is shorter than the filter: floor(log2(length / 7))."""
  return max(int(np.floor(np.log2(length / (len(LOW) - 1)))), 0) if length else 0


def num_coefficients(length: int, level: int | None = None, boundary="periodization") -> int:
  """How many numbers `wavedec_db4` returns for a signal."""
  total, level = 0, max_level(length) if level is None else level
  for _ in range(level):
    length = (length + (1 if boundary == "periodization" else 7)) // 2
    total += length
  return total + length


def wavedec_db4(x: Array, level: int | None = None, *, boundary: str = "periodization") -> Array:
  """Approximation, then details from coarse to fine, of signals along the last axis.

    a[n] = sum_k low[k] x[2 n + 1 - k + shift],  d[n] likewise with high; again on a, `level` times

  Args:
    x: [..., N] float.
    level: how often; None for `max_level(N)`.
    boundary: the signal is continued periodically. "periodization" keeps N coefficients (an
      orthogonal transform; a signal of odd length repeats its last sample); "periodic" keeps every
      coefficient that the signal touches, (n + 7) // 2 a level, as the official code does.
  Returns:
    [..., num_coefficients(N)] like x: [approximation, coarsest detail, ..., finest detail].
  Raises:
    InputError: an unknown boundary, or a level that the length does not allow.
  Source: S. Mallat 1989; the filter of I. Daubechies 1988 table 1 for N = 4.
  """
  most = max_level(x.shape[-1])
  level = most if level is None else level
  if boundary not in BOUNDARIES:
    raise InputError(f"boundary={boundary!r} is unknown: choose from {', '.join(BOUNDARIES)}")
  if not 0 <= level <= most:
    raise InputError(f"level={level}: a signal of {x.shape[-1]} samples has at most {most}")
  details, low = [], x
  for _ in range(level):
    if boundary == "periodization":
      if low.shape[-1] % 2:
        low = jnp.concatenate([low, low[..., -1:]], axis=-1)
      before, after = 3, 3
    else:
      before, after = 6, 7 if low.shape[-1] % 2 == 0 else 6
    around = jnp.concatenate([low[..., -before:], low, low[..., :after]], axis=-1)
    num = (around.shape[-1] - len(LOW)) // 2 + 1
    # A strided convolution as a sum over its eight taps, which fuses into one pass.
    taps = [around[..., k : k + 2 * num - 1 : 2] for k in range(len(LOW))]
    apply = lambda kernel, taps=taps: sum(float(f) * tap for f, tap in zip(kernel[::-1], taps))
    low, detail = apply(LOW), apply(HIGH)
    details.append(detail)
  return jnp.concatenate([low, *details[::-1]], axis=-1)


class WaveEncoder(nnx.Module):
  """W RMSNorm(wavedec_db4(segment)), of every segment by itself; no gradient into the transform.

  Source: arXiv 2506.20354; `models/fftencoder.py` of its code.
  """

  def __init__(
    self, samples: int, dim: int, *, scale: float = 0.02, boundary="periodization", rngs: nnx.Rngs
  ):
    num = num_coefficients(samples, boundary=boundary)
    self.norm = RMSNorm(num, epsilon=1e-5, rngs=rngs)
    init = nnx.initializers.normal(scale)
    self.proj = nnx.Linear(num, dim, use_bias=False, kernel_init=init, rngs=rngs)
    self.boundary = boundary

  def __call__(self, x: Array) -> Array:
    """[..., samples] -> [..., dim]."""
    found = jax.lax.stop_gradient(wavedec_db4(x, boundary=self.boundary))
    return self.proj(self.norm(found))
