"""What operations ask of their arguments."""

from jax import Array
import jax.numpy as jnp


def check_qkv(q: Array, k: Array, v: Array) -> None:
  """q [B, T, H, D], k [B, S, K, D], v [B, S, K, E] of one floating dtype, K a divisor of H.

  Raises:
    ValueError: they are not; the message names the array, what it must be and what it is.
  """
  for name, x in (("q", q), ("k", k), ("v", v)):
    if x.ndim != 4:
      raise ValueError(f"{name} must be [batch, length, heads, width]: got shape {x.shape}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
      raise ValueError(f"{name} must be floating point: got {x.dtype}")
  if not (q.dtype == k.dtype == v.dtype):
    raise ValueError(f"q, k and v must have one dtype: got {q.dtype}, {k.dtype}, {v.dtype}")
  batch, _, heads, width = q.shape
  num_keys, key_heads = k.shape[1:3]
  if k.shape[0] != batch or k.shape[3] != width:
    raise ValueError(
      f"k must be [{batch}, keys, key heads, {width}] for q of shape {q.shape}: got {k.shape}"
    )
  if v.shape[:3] != k.shape[:3]:
    raise ValueError(
      f"v must be [{batch}, {num_keys}, {key_heads}, value width] like k {k.shape}: got {v.shape}"
    )
  if key_heads == 0 or heads % key_heads:
    raise ValueError(
      f"the number of key heads must divide that of heads: got {key_heads} and {heads}"
    )
