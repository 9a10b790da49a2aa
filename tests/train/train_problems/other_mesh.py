"""Saves a state of the text workload on eight devices and reads it on other meshes, bit for bit.

python other_mesh.py FOLDER      with --xla_force_host_platform_device_count=8 in XLA_FLAGS
"""

from pathlib import Path
import sys

import curves
import jax
import numpy as np

from h2g.train.checkpoint import Checkpoints
from h2g.train.checkpoint import Record
from h2g.train.loop import make_programs
from h2g.train.settings import complete
from h2g.train.settings import Settings
from h2g.train.sharding import Layout
from h2g.train.sharding import make_mesh
from h2g.train.step import seed_keys


def main(folder: str) -> None:
  experiment, config = curves.build("text")
  settings = Settings.from_config(complete(config))
  saved = None
  for sizes in ((2, 2, 2), (1, 1, 4), (4, 1, 1), (1, 1, 1)):
    mesh = make_mesh(tuple(zip(curves.AXES, sizes)))
    layout = Layout(mesh, (0,), settings.rules, experiment.rows, experiment.sequence)
    programs = make_programs(experiment, settings, layout)
    checkpoints = Checkpoints(Path(folder), layout, programs.abstract, "hash")
    if saved is None:
      state, best = programs.create(seed_keys(layout.padded))
      checkpoints.save(state, best, Record(3, [None], [0]))
      checkpoints.wait()
      saved = jax.device_get((state, best))
    else:
      *found, record = checkpoints.restore()
      assert record.step == 3
      wanted = jax.tree.map(lambda leaf: leaf.sharding, programs.abstract)
      assert jax.tree.map(lambda leaf: leaf.sharding, tuple(found)) == wanted
      assert len(found[0].step.sharding.device_set) == np.prod(sizes)
      jax.tree.map(np.testing.assert_array_equal, jax.device_get(tuple(found)), saved)
      print(sizes, flush=True)
    checkpoints.close()


if __name__ == "__main__":
  main(*sys.argv[1:])
