"""Poolings behind one call; the equivalence that efficient probing rests on; the probe's head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from h2g.errors import InputError
from h2g.nn.pooling import AttentiveProbe
from h2g.nn.pooling import conversion_error
from h2g.nn.pooling import EfficientProbing
from h2g.nn.pooling import mhca_to_mqca
from h2g.nn.pooling import MultiHeadPool
from h2g.nn.pooling import POOLINGS
from h2g.nn.pure import pure
from h2g.nn.pure import rest_of


def tokens(batch=5, num=6, dim=12):
  return jnp.asarray(np.random.default_rng(0).normal(size=(batch, num, dim)), jnp.float32)


@pytest.mark.few(3)
@pytest.mark.parametrize("name", [name for name in POOLINGS if name != "cls"])
def test_every_pooling_gives_a_vector_and_its_maps(name):
  model = pure(lambda rngs: POOLINGS[name](12, 3, rngs=rngs))
  params, rest = model.init(jax.random.key(0))
  x = tokens()
  run = jax.jit(lambda params, x: model.bind(params, rest)(x))
  out, weights = run(params, x)
  assert out.shape == (5, 12)
  maps = 3 if name in ("ep", "mhca", "aim", "jepa") else 1
  assert weights.shape == (5, maps, 6)
  np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-5)
  # A set has no order.
  turned = run(params, x[:, ::-1])
  np.testing.assert_allclose(turned.out, out, atol=1e-5)
  np.testing.assert_allclose(turned.weights[..., ::-1], weights, atol=1e-5)
  grads = jax.grad(lambda p: (model.bind(p, rest)(x).out ** 2).sum())(params)
  assert all(bool(jnp.abs(leaf).max() > 0) for leaf in jax.tree.leaves(grads))


def test_multi_head_pooling_is_efficient_probing():
  heads = 4
  mhca = pure(lambda rngs: MultiHeadPool(12, heads, rngs=rngs))
  ep = pure(lambda rngs: EfficientProbing(12, heads, rngs=rngs))
  params, rest = mhca.init(jax.random.key(1))
  params["u"] = jax.random.normal(jax.random.key(2), (12,))  # maps that are far from uniform
  x = tokens()
  theirs = mhca.bind(params, rest)(x)
  ours = ep.bind(mhca_to_mqca(params, heads), {})(x)
  np.testing.assert_allclose(ours.weights, theirs.weights, atol=1e-5)
  projected = ours.out @ params["attention"]["out"]["kernel"]
  np.testing.assert_allclose(projected, theirs.out, atol=1e-5)


def test_the_difference_that_the_claim_reports():
  assert 0 < conversion_error(dim=16, num_heads=4) < 1e-5


def test_parameters_are_counted_as_published():
  """1,383,400 for ViT-B with 32 queries and 1,000 classes; 769,000 for a linear probe."""

  def count(name, *args):
    make = lambda rngs: AttentiveProbe(POOLINGS[name](768, *args, rngs=rngs), 1000, rngs=rngs)
    params, _ = jax.eval_shape(pure(make).init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(params))

  assert count("ep", 32) == 1_383_400 and count("gap") == 769_000


def test_the_head_normalises_over_the_batch_and_keeps_running_statistics():
  model = pure(lambda rngs: AttentiveProbe(POOLINGS["gap"](12, rngs=rngs), 3, rngs=rngs))
  params, rest = model.init(jax.random.key(0))
  probe, x = model.bind(params, rest), 3 + 2 * tokens()
  probe.train()
  got = probe(x)
  mean = np.asarray(x[:, 1:].mean(1))
  scaled = (mean - mean.mean(0)) / np.sqrt(mean.var(0) + 1e-6)
  kernel, bias = (np.asarray(params["classifier"][name]) for name in ("kernel", "bias"))
  np.testing.assert_allclose(got, scaled @ kernel + bias, atol=1e-5)
  running = rest_of(probe)["norm"]
  np.testing.assert_allclose(running["mean"], 0.1 * mean.mean(0), atol=1e-5)
  np.testing.assert_allclose(running["var"], 0.9 + 0.1 * mean.var(0), atol=1e-4)
  probe.eval()
  center, spread = np.asarray(running["mean"]), np.sqrt(np.asarray(running["var"]) + 1e-6)
  np.testing.assert_allclose(probe(x), (mean - center) / spread @ kernel + bias, atol=1e-5)


def test_which_tokens_are_pooled():
  x = tokens()
  for which, cut in (("patches", x[:, 1:]), ("class", x[:, :1]), ("all", x)):
    make = lambda rngs, which=which: AttentiveProbe(
      POOLINGS["gap"](12, rngs=rngs), 3, tokens=which, rngs=rngs
    )
    model = pure(make)
    found = model.bind(*model.init(jax.random.key(0))).pooled(x).out
    np.testing.assert_allclose(found, cut.mean(1), atol=1e-6)
  with pytest.raises(InputError, match="tokens='cls' is unknown: choose patches, class or all"):
    pure(lambda rngs: AttentiveProbe(POOLINGS["gap"](12, rngs=rngs), 3, tokens="cls", rngs=rngs))


@pytest.mark.parametrize("queries, d_out", [(5, 1), (4, 2), (3, 5)])
def test_queries_that_do_not_divide_the_width(queries, d_out):
  with pytest.raises(InputError, match=f"{queries} queries share an output of width 12 / {d_out}"):
    pure(lambda rngs: EfficientProbing(12, queries, d_out=d_out, rngs=rngs))
