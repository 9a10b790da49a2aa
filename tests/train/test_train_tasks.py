"""Parts of experiments that many share: rows at random, classes, means over rows, streams."""

import jax
import jax.numpy as jnp
import numpy as np

from h2g import train
from h2g.train import Batch


def test_rows_are_drawn_alike_from_every_array():
  arrays = {"x": jnp.arange(5) * 10, "y": (jnp.arange(5),)}
  drawn = train.rows_at_random(arrays, 100, jax.random.key(0))
  np.testing.assert_array_equal(drawn["x"], 10 * drawn["y"][0])
  assert set(np.asarray(drawn["y"][0])) == set(range(5))


def test_padded_rows_count_for_nothing():
  def forward(params, rest, inputs, training):
    return params * inputs, rest + training

  parts = {"val": (jnp.eye(3), jnp.array([0, 2, -1])), "test": (jnp.eye(3), jnp.array([0, 1, 2]))}
  task = train.classification(forward, lambda batch, key: batch.shared["test"], lambda b: b.shared)
  stats = task["evaluate"](2.0, 0, Batch(parts, None))
  assert task["summarise"](jax.device_get(stats)) == {"val/accuracy": 0.5, "test/accuracy": 1.0}
  loss, (rest, metrics) = task["loss"](2.0, 0, Batch(parts, None), jax.random.key(0))
  by_hand = np.log(np.exp(2.0) + 2) - 2.0
  np.testing.assert_allclose(loss, by_hand, rtol=1e-6)
  assert rest == 1 and float(metrics["accuracy"]) == 1.0


def test_a_mean_over_rows_has_the_same_key_at_every_evaluation():
  losses = lambda params, rest, rows, key: params * rows + jax.random.normal(key, rows.shape)
  parts = {name: jnp.full(num, 1.0) for name, num in (("train", 7), ("val", 3), ("test", 4))}
  task = train.mean_loss(losses, parts, batch_size=20)
  held = task["eval_batches"]((0,))
  one, other = (task["evaluate"](2.0, None, held) for _ in range(2))
  assert float(one["val"]) == float(other["val"]) and set(one) == {"val", "test"}
  found = task["summarise"](one)
  assert found["val/loss"] == float(one["val"]) and task["maximise"] is False
  step = lambda seed: task["loss"](2.0, None, task["train_batches"]((0,)), jax.random.key(seed))[0]
  assert float(step(0)) != float(step(1))


def test_a_stream_in_order_repeats_for_every_seed_and_begins_anew():
  batches = train.in_order(lambda: ({"x": np.full(2, i)} for i in range(3)), shared="s")((4, 5))
  for _ in range(2):
    read = list(batches())
    assert [batch.own["x"].shape for batch in read] == [(2, 2)] * 3
    assert read[2].own["x"].tolist() == [[2, 2], [2, 2]] and read[0].shared == "s"
