"""Heads of published probes: the same function, and what cannot be used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from h2g.convert import efficient_probing
from h2g.errors import InputError
from h2g.nn.pooling import AttentiveProbe
from h2g.nn.pooling import EfficientProbing
from h2g.nn.pure import pure

DIM, QUERIES, WIDTH, CLASSES = 12, 3, 6, 5


def probe(dim=DIM):
  make = lambda rngs: EfficientProbing(dim, QUERIES, d_out=2, rngs=rngs)
  model = pure(lambda rngs: AttentiveProbe(make(rngs), CLASSES, rngs=rngs))
  return model, *jax.eval_shape(model.init, jax.random.key(0))


def test_a_published_head_is_the_same_function(tmp_path):
  rng = np.random.default_rng(0)
  shapes = {
    "blocks.0.norm1.weight": (DIM,),
    "head.0.v.weight": (WIDTH, DIM),
    "head.0.cls_token": (1, QUERIES, DIM),
    "head.1.running_mean": (WIDTH,),
    "head.1.running_var": (WIDTH,),
    "head.1.num_batches_tracked": (),
    "head.2.weight": (CLASSES, WIDTH),
    "head.2.bias": (CLASSES,),
  }
  w = {name: np.asarray(rng.random(shape), np.float32) for name, shape in shapes.items()}
  np.savez(tmp_path / "ep.npz", **w)
  model, params, rest = probe()
  network = model.bind(*efficient_probing.load(tmp_path / "ep.npz", params, rest))
  network.eval()
  x = rng.normal(size=(2, 8, DIM))
  scores = np.exp(np.einsum("qd,bnd->bqn", w["head.0.cls_token"][0], x[:, 1:]) * DIM**-0.5)
  maps = scores / scores.sum(-1, keepdims=True)
  values = (x[:, 1:] @ w["head.0.v.weight"].T).reshape(2, 7, QUERIES, -1)
  y = np.einsum("bqn,bnqe->bqe", maps, values).reshape(2, WIDTH)
  y = (y - w["head.1.running_mean"]) / np.sqrt(w["head.1.running_var"] + 1e-6)
  want = y @ w["head.2.weight"].T + w["head.2.bias"]
  np.testing.assert_allclose(network(jnp.asarray(x, jnp.float32)), want, atol=1e-4)

  _, params, rest = probe(dim=18)
  with pytest.raises(InputError, match=r"ep\.npz does not fit .*head\.0\.cls_token \(1, 3, 12\)"):
    efficient_probing.load(tmp_path / "ep.npz", params, rest)
  np.savez(tmp_path / "bare.npz", **{"blocks.0.norm1.weight": np.ones(DIM)})
  with pytest.raises(InputError, match=r"bare\.npz holds no tensor head\."):
    efficient_probing.load(tmp_path / "bare.npz", params, rest)
