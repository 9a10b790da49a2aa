"""A node as a short sequence of tokens: what transformers over single nodes read."""

from jax import Array

from h2g.graph import HeteroGraph
from h2g.nn.conv import propagate


def monomials(h: Array, graph: HeteroGraph, order: int) -> list[Array]:
  """[h, S h, ..., S^order h], each like h [N, G]; S as in `propagate`.

  Source: arXiv 2206.04910 eq. 5 (Hop2Token).
  """
  tokens = [h]
  for _ in range(order):
    tokens.append(propagate(tokens[-1], graph))
  return tokens


def chebyshev(h: Array, graph: HeteroGraph, order: int) -> list[Array]:
  """[T_0(S) h, ..., T_order(S) h]: T_k = 2 S T_{k-1} - T_{k-2}, T_0 = I, T_1 = S.

  In terms of the Laplacian L = I - S that is T_k of I - L.
  Source: arXiv 2407.14459 table 1.
  """
  tokens = [h]
  for k in range(order):
    walked = propagate(tokens[-1], graph)
    tokens.append(walked if k == 0 else 2.0 * walked - tokens[-2])
  return tokens
