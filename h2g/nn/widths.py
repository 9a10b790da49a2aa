"""How wide one attention head is."""

from h2g.errors import InputError


def head_width(dim: int, num_heads: int, head_dim: int = 0) -> int:
  """`head_dim`, or where it is 0, `dim` divided among `num_heads`.

  Raises:
    InputError: `dim` has to be divided, and `num_heads` does not divide it.
  """
  if not head_dim and dim % num_heads:
    raise InputError(f"num_heads={num_heads} does not divide dim={dim}; choose a divisor")
  return head_dim or dim // num_heads
