"""Transformers over nodes: logits against dense float64 matrices."""

import numpy as np
import pytest

from h2g import models
from h2g.nn.tokens import chebyshev
from h2g.nn.tokens import monomials
from tests.models.test_homogeneous import encoded
from tests.models.test_homogeneous import gelu
from tests.models.test_homogeneous import GRAPH
from tests.models.test_homogeneous import linear
from tests.models.test_homogeneous import made
from tests.models.test_homogeneous import norm
from tests.models.test_homogeneous import relu
from tests.models.test_homogeneous import run
from tests.models.test_homogeneous import S
from tests.models.test_homogeneous import value


def dense_polyformer(m):
  eigenvalues, vectors = np.linalg.eig(S)
  if m.basis is monomials:
    curves = [eigenvalues**k for k in range(m.hops + 1)]
  else:
    curves = [np.cos(k * np.arccos(eigenvalues + 0j)) for k in range(m.hops + 1)]
  filters = [(vectors * curve @ np.linalg.inv(vectors)).real for curve in curves]
  out = []
  for node in range(13):
    x = np.stack([(matrix @ encoded(m))[node] for matrix in filters])
    for layer in m.layers:
      y = norm(layer.norm, x)
      mlp = lambda k, y=y, m=layer: (
        relu(y[k] @ value(m.up)[k] + value(m.up_bias)[k]) @ value(m.down)[k] + value(m.down_bias)[k]
      )
      t = np.stack([mlp(k) for k in range(len(x))])
      q, k = linear(layer.query, t), linear(layer.key, t)
      update, width = np.zeros_like(x), x.shape[1] // layer.num_heads
      for head in range(layer.num_heads):
        at = slice(head * width, (head + 1) * width)
        beta = value(layer.scale)[head] / np.arange(1, len(x) + 1) ** layer.decay
        update[:, at] = np.tanh(q[:, at] @ k[:, at].T / np.sqrt(width)) * beta @ y[:, at]
      x = x + update
      x = x + linear(layer.ffn_down, gelu(linear(layer.ffn_up, norm(layer.ffn_norm, x))))
    out.append(linear(m.head, relu(linear(m.hidden, x.sum(0)))))
  return np.stack(out)


@pytest.mark.parametrize("basis", [monomials, chebyshev])
def test_polyformer_filters_each_nodes_polynomial_tokens(basis):
  module = made(models.PolyFormer, dim=8, num_layers=2, num_heads=2, hops=3, basis=basis)
  np.testing.assert_allclose(run(module, GRAPH), dense_polyformer(module), atol=1e-4, rtol=1e-4)
