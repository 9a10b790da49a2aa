"""A gather across devices equals the plain one, bit for bit, and so does its gradient."""

import os
from pathlib import Path
import subprocess
import sys

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from h2g.graph.sharded_features import gather_rows, shard_rows
rng = np.random.default_rng(0)
table = rng.normal(size=(37, 3)).astype(np.float32)
ids = np.array([0, 36, 5, 5, 11, 18, 36, 2, 9, 30, 31, 17, 1, 0, 5, 22], np.int32)
weight = rng.normal(size=(16, 3)).astype(np.float32)
wanted = np.zeros_like(table)
np.add.at(wanted, ids, weight)
for devices in (2, 4, 8):
  mesh = jax.make_mesh((devices,), ("fsdp",), devices=jax.devices()[:devices],
                       axis_types=(jax.sharding.AxisType.Auto,))
  held = shard_rows(table, mesh, "fsdp")
  assert held.shape[0] % devices == 0 and len(held.sharding.device_set) == devices
  assert {s.data.shape[0] for s in held.addressable_shards} == {held.shape[0] // devices}
  for scatter in (False, True):
    def loss(held, ids, scatter=scatter):
      rows = gather_rows(held, ids, mesh=mesh, axis="fsdp", scatter=scatter)
      return jnp.sum(rows * weight), rows
    grads, rows = jax.jit(jax.grad(loss, has_aux=True))(held, ids)
    np.testing.assert_array_equal(rows, table[ids])
    np.testing.assert_allclose(np.asarray(grads)[:37], wanted, rtol=1e-6)
    assert not np.asarray(grads)[37:].any() and grads.sharding == held.sharding
    assert len({str(s.index) for s in rows.addressable_shards}) == (devices if scatter else 1)
  many = np.stack([ids, ids[::-1]])  # subgraphs side by side
  together = jax.vmap(lambda ids: gather_rows(held, ids, mesh=mesh, axis="fsdp"))
  np.testing.assert_array_equal(jax.jit(together)(many), table[many])
  text = jax.jit(lambda h, i: gather_rows(h, i, mesh=mesh, axis="fsdp")).lower(held, ids)
  assert "all-gather" not in text.compile().as_text()  # nobody ever holds the table
outside = gather_rows(held, jnp.array([-1, 40, 3]), mesh=mesh, axis="fsdp")
np.testing.assert_array_equal(outside, np.stack([0 * table[0], 0 * table[0], table[3]]))
try:
  gather_rows(jnp.asarray(table), ids, mesh=mesh, axis="fsdp")
except ValueError as error:
  assert "multiple of 8 rows: use shard_rows" in str(error)
else:
  raise AssertionError("37 rows over 8 devices")
print("same")
"""


def test_on_two_four_and_eight_devices():
  flags = "--xla_force_host_platform_device_count=8 --xla_llvm_disable_expensive_passes=true"
  environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
  environment["PYTHONPATH"] = str(Path(__file__).parents[2])
  done = subprocess.run(
    [sys.executable, "-W", "error::DeprecationWarning:h2g", "-c", PROGRAM],
    env=environment,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0 and done.stdout == "same\n", done.stderr[-2000:]
