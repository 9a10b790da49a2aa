"""Every test runs with strict promotion rules, so that a silent broadcast or upcast is an error."""

import os

os.environ.setdefault(
  "OMP_WAIT_POLICY", "PASSIVE"
)  # torch beside XLA in one process: see docs on timing
os.environ.setdefault("JAX_PLATFORMS", "cpu")
flags = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in flags:
  flags = f"{flags} --xla_force_host_platform_device_count=2".strip()
if os.environ["JAX_PLATFORMS"] == "cpu" and "xla_backend_optimization_level" not in flags:
  # Small shapes, many programs: compiling takes most of the time, and this saves half of that.
  flags = f"{flags} --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] = flags

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
  """`@pytest.mark.few(2)` or `few("id", ...)`: the other cases of the test are slow."""
  seen = {}
  for item in items:
    if (few := item.get_closest_marker("few")) is None:
      continue
    test = (item.path, item.originalname)
    seen[test] = seen.get(test, 0) + 1
    ids = [which for which in few.args if isinstance(which, str)]
    stays = item.callspec.id in ids if ids else seen[test] <= few.args[0]
    if not stays:
      item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def data_dir():
  """Folder of the external data sets, or a skip with the reason."""
  import pathlib

  root = pathlib.Path(
    os.environ.get("H2G_DATA", pathlib.Path(__file__).parents[2] / "shared" / "data")
  )
  if not root.is_dir():
    pytest.skip(f"external data not found at {root}: set H2G_DATA to the folder that holds it")
  return root
