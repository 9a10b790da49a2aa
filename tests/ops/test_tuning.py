"""Tuned sizes: read for the right device and shape, tried in turn, refused where malformed."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from h2g.ops import masks
from h2g.ops import tuning
from h2g.ops.attention import attention
from h2g.ops.attention import plan


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch):
  monkeypatch.setattr(tuning, "_loaded", {})


@pytest.mark.smoke
def test_a_loaded_file_decides_for_its_device_and_shape(tmp_path):
  path = tmp_path / "tuning.json"
  kind = jax.devices()[0].device_kind
  path.write_text(json.dumps({kind: {"attention.xla": {"length=1024": {"block": 32}}}}))
  assert plan._block_sizes(1000)[0] == 128
  tuning.load(path)
  assert plan._block_sizes(1000)[0] == 32  # 1000 counts as 1024
  assert plan._block_sizes(512)[0] == 128
  path.write_text(json.dumps({"another device": {"attention.xla": {"length=512": {"block": 32}}}}))
  tuning.load(path)
  assert plan._block_sizes(512)[0] == 128


def test_sizes_change_nothing_but_speed():
  q, k, v = (
    jax.random.normal(key, (1, 50, 2, 4)) for key in jax.random.split(jax.random.key(0), 3)
  )
  want = attention(q, k, v, mask=masks.causal())
  with tuning.trying("attention.xla", {"block": 16}):
    got = attention(q, k, v, mask=masks.causal())
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_the_fastest_candidate_wins():
  def timed():
    size = tuning.sizes("demo", dict(n=1), length=8)["n"]
    if size == 7:
      raise NotImplementedError("demo refuses 7")
    x = jnp.ones((size, size))
    return lambda: jax.block_until_ready(x @ x)

  best, medians = tuning.fastest("demo", [{"n": 600}, {"n": 7}, {"n": 2}], timed, rounds=5)
  assert best == {"n": 2} and len(medians) == 2
  with pytest.raises(ValueError, match="refuses every candidate: demo refuses 7"):
    tuning.fastest("demo", [{"n": 7}], timed)


@pytest.mark.parametrize(
  "text, message",
  [
    ("{", "is not JSON"),
    ("[]", "the file must be an object"),
    (
      '{"cpu": {"attention.xla": {"length=8": {"block": 0}}}}',
      "'block'.* must be a positive integer",
    ),
    ('{"cpu": {"attention.xla": 3}}', r"\['cpu'\]\['attention.xla'\] must be an object: got 3"),
  ],
)
def test_a_malformed_file_is_named(tmp_path, text, message):
  path = tmp_path / "tuning.json"
  path.write_text(text)
  with pytest.raises(ValueError, match=message) as found:
    tuning.load(path)
  assert str(path) in str(found.value)
