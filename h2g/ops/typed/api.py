"""One linear map per type over type-sorted rows: signature, checks, choice of implementation.

Axes: N rows, T types, F width in, G width out.
"""

from collections.abc import Sequence
import itertools

from jax import Array
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from h2g.ops import dispatch
from h2g.ops import sharding as sharding_lib
from h2g.ops.typed import reference
from h2g.ops.typed import xla

IMPLEMENTATIONS = dict(xla=xla.typed_linear, reference=reference.typed_linear)
ORDER = dict.fromkeys(("cpu", "gpu", "tpu"), ("xla", "reference"))


def typed_linear(
  x: Array,
  w: Array,
  *,
  offsets: Sequence[int] | Array,
  bias: Array | None = None,
  sharding: NamedSharding | PartitionSpec | None = None,
  implementation: str | None = None,
) -> Array:
  """y[n] = x[n] w[t] + bias[t], t the type with offsets[t] <= n < offsets[t + 1].

  Args:
    x: [N, F] float, rows sorted by type.
    w: [T, F, G] like x.
    offsets: T + 1 ascending row offsets from 0. A tuple of Python integers is static: one matrix
      product per type. An int32 array [T + 1] is read on the device, and its values are not
      checked.
    bias: [T, G] like x.
    sharding: layout of w over a mesh, where w itself does not show it; columns out (G) may be
      sharded. Each shard multiplies all rows by its columns.
    implementation: "xla" or "reference"; None chooses.
  Returns:
    [N, G] in x's dtype. Rows at or beyond offsets[-1] are zeros, whatever x holds there. Products
    accumulate in float32.
  Raises:
    ValueError: shapes disagree, static offsets do not ascend from 0 to at most N, or shards do not
      divide the columns.
    NotImplementedError: unknown implementation, or `sharding` splits another axis of w.
  Source: the type-wise projections of arXiv 2003.01332 and arXiv 2407.10916.
  """
  if x.ndim != 2 or w.ndim != 3 or x.shape[1] != w.shape[1]:
    raise ValueError(f"x {x.shape} must be [N, F] and w {w.shape} [T, F, G] with the same F")
  if bias is not None and bias.shape != (w.shape[0], w.shape[2]):
    raise ValueError(f"bias {bias.shape} must be [T, G] = {(w.shape[0], w.shape[2])}")
  if isinstance(offsets, (tuple, list)):
    offsets = tuple(offsets)
    if len(offsets) != w.shape[0] + 1 or offsets[0] != 0 or offsets[-1] > x.shape[0]:
      raise ValueError(
        f"offsets {offsets} must be T + 1 = {w.shape[0] + 1} numbers from 0 to at most "
        f"N = {x.shape[0]}"
      )
    if any(a > b for a, b in itertools.pairwise(offsets)):
      raise ValueError(f"offsets {offsets} must ascend")
  elif offsets.shape != (w.shape[0] + 1,):
    raise ValueError(f"offsets {offsets.shape} must be [T + 1] = ({w.shape[0] + 1},)")
  static = isinstance(offsets, tuple)

  def local(w, x, bias, ends):
    ends = offsets if static else ends
    return dispatch.choose(
      "typed_linear", IMPLEMENTATIONS, ORDER, implementation, x, w, offsets=ends, bias=bias
    )

  arrays = (w, x, bias, None if static else offsets)
  return sharding_lib.over_shards(local, arrays, ("__h", "__", "_h", "_"), "_h", sharding)
