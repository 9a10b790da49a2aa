"""H2G-former is above MLP, GCN and HGT on C. elegans roles, each by more than a standard error."""

import numpy as np

from h2g.papers import Finding
from h2g.papers import Runs


def check(runs: Runs) -> list[Finding]:
  """One finding per baseline."""
  peers = {model: f"celegans,model={model}" for model in ("mlp", "gcn", "hgt")}
  runs.prepare("celegans", *peers.values())
  ours = runs.test("celegans")
  error = ours.std(ddof=1) / np.sqrt(len(ours))
  return [
    Finding.compare(
      f"H2G-former - {model} - one standard error",
      ours.mean() - error - runs.mean(variant),
      at_least=0.0,
    )
    for model, variant in peers.items()
  ]
