"""One network separates the attributes: far above one space, above masks, like a network each."""

import jax
import numpy as np

from experiments.cca.experiment import build
from experiments.cca.experiment import cross_map
from h2g.metrics import linear_probe
from h2g.papers import Finding
from h2g.papers import Runs


def check(runs: Runs) -> list[Finding]:
  """The sentences of the claim; mAP is the mean over attributes and seeds."""
  runs.prepare("tiny,model=separate", "tiny", *(f"tiny,model={m}" for m in ("none", "csn", "film")))
  ours = runs.mean("tiny")
  above = lambda model: ours - runs.mean(f"tiny,model={model}")
  spaces, none = embeddings(runs, "tiny"), embeddings(runs, "tiny,model=none")
  tiled = embeddings(runs, "tiny", evaluate_as="tiny,model=tiled")
  pairs = zip(jax.tree.leaves(spaces), jax.tree.leaves(tiled))
  apart = max(float(np.abs(a - b).max()) for a, b in pairs)
  share = runs.num_params("tiny") / runs.num_params("tiny,model=separate")
  num = spaces[0]["gallery"]["spaces"].shape[1]
  maps = np.mean([map_table(split) for split in spaces], axis=0)
  swapped = maps[~np.eye(num, dtype=bool)].mean()
  chance = np.mean([prevalence(split["gallery"]["labels"]) for split in spaces])
  probed = [np.mean([entanglement(split) for split in found]) for found in (none, spaces)]
  findings = [
    Finding.compare("mAP of CCA - of no condition", above("none"), at_least=0.20),
    Finding.compare("mAP of CCA - of a mask per condition (CSN)", above("csn"), at_least=0.01),
    Finding.compare("mAP of CCA - of a network each", above("separate"), at_least=-0.03),
    Finding.at_most("its parameters over those of a network each", share, 1.2 / num),
    Finding.at_most("mAP with the condition swapped - chance", swapped - chance, 0.05),
    Finding.at_most("largest difference of one query and a query per token", apart, 1e-5),
    Finding.compare(
      "linear probe of other attributes: no condition - CCA", probed[0] - probed[1], at_least=0.0
    ),
  ]
  runs.results("tiny,model=film")  # for the table alone
  return findings


def embeddings(runs: Runs, variant: str, *, evaluate_as: str | None = None) -> list[dict]:
  """The test split of each seed, embedded by the trained variant, or by another with its weights.

  {"queries" or "gallery": {"spaces": [N, K, E], "labels": [N, K]}}
  """
  experiment = build(runs.config(evaluate_as or variant))
  batch = experiment.eval_batches((0,))
  evaluate = jax.jit(lambda params, rest: experiment.evaluate(params, rest, batch)["test"])
  return [jax.device_get(evaluate(*seed)) for seed in runs.seeds(variant)]


def map_table(split) -> np.ndarray:
  """[K, K] mAP: rows the space, columns the attribute that says what is relevant."""
  num = split["gallery"]["spaces"].shape[1]
  return np.array([[cross_map(split, c, k) for k in range(num)] for c in range(num)])


def prevalence(labels: np.ndarray) -> float:
  """mAP of a random order in a large gallery: the chance that two items agree, over attributes."""
  return float(np.mean([np.sum((np.bincount(x) / len(x)) ** 2) for x in labels.T]))


def entanglement(split) -> float:
  """Accuracy of a linear probe on the space of one attribute for another, over all pairs.

  Fitted on the gallery, tested on the queries.
  """
  gallery, queries = split["gallery"], split["queries"]
  num = gallery["spaces"].shape[1]
  of = lambda part, c, k: (part["spaces"][:, c], part["labels"][:, k])
  pairs = [(c, k) for c in range(num) for k in range(num) if c != k]
  return float(np.mean([linear_probe(*of(gallery, *p), *of(queries, *p)) for p in pairs]))
