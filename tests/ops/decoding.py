"""What the tests of the kernels of decode attention share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from h2g.ops.cache import decode_attention
from tests.ops import contract


def ragged(rows):
  """[B, K] lengths: none, one, all but one, more than there are."""
  return np.array([[0, rows - 1], [1, rows + 7]], np.int32)


@functools.partial(jax.jit, static_argnums=0, static_argnames="softcap")
def case(implementation, q, k, v, sinks=None, *, softcap=None):
  found = decode_attention(
    q,
    k,
    v,
    jnp.asarray(ragged(k.shape[2])),
    sinks=sinks,
    softcap=softcap,
    return_lse=True,
    implementation=implementation,
  )
  return contract.with_lse(found)
