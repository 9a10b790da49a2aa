"""PWCA regularises, GLCA does no harm beside it, and the rollout looks where the mark is."""

import math

import jax
import numpy as np

from experiments.dcal.experiment import drawn
from experiments.dcal.experiment import network
from h2g.data.birds import mark_patches
from h2g.data.birds import NUM_CLASSES
from h2g.data.photographs import normalise
from h2g.papers import Finding
from h2g.papers import Runs

SA, PWCA, GLCA, DCAL = (
  f"tiny,branches={branches}" for branches in ("sa", "sa+pwca", "sa+glca", "sa+glca+pwca")
)


def check(runs: Runs) -> list[Finding]:
  """The sentences of the claim; accuracies are means over seeds."""
  noisy_keys, noisy_labels = f"{PWCA},distractors=noise", f"{SA},label_noise=0.1"
  runs.prepare(DCAL, PWCA, noisy_keys, GLCA, SA, noisy_labels)
  sa, pwca, glca, dcal = map(runs.mean, (SA, PWCA, GLCA, DCAL))
  noise = runs.mean(noisy_keys)
  runs.results(noisy_labels)  # for the table alone
  gap = lambda of: runs.metrics(of)["train/accuracy"] - runs.metrics(of)["test/accuracy"]
  hit, chance = hit_rates(runs, DCAL)
  return [
    Finding.compare("accuracy of SA+PWCA - of SA", pwca - sa, at_least=0.015),
    Finding.above("train-test gap of SA - of SA+PWCA", gap(SA), gap(PWCA)),
    Finding.compare(
      "accuracy of DCAL - of the better of its parts", dcal - max(pwca, glca), -0.005
    ),
    Finding.compare("accuracy of PWCA with images - with noise as keys", pwca - noise, 0.0),
    Finding.above("share of marks that the rollout selects - that chance selects", hit, chance),
  ]


def hit_rates(runs: Runs, variant: str) -> tuple[float, float]:
  """(by the rollout, by chance): share of test images with a patch of the mark selected."""
  config = runs.config(variant)
  model, test = network(config, NUM_CLASSES), drawn(config.data)["test"]

  def select(params, rest):
    module = model.bind(params, rest)
    vit = module.vit
    tokens = vit.with_class_token(vit.embed(normalise(test.images)))
    return module.selected(module.encode(tokens)[1])[:, 1:] - 1

  marked = mark_patches(test.marks, config.model.patch, config.model.image_size)  # [N, patches]
  hits, select = [], jax.jit(select)
  for params, rest in runs.seeds(variant):
    ids = np.asarray(select(params, rest))
    hits.append(np.take_along_axis(marked, ids, axis=1).any(1).mean())
  patches, count = marked.shape[1], ids.shape[1]
  miss = [math.comb(patches - m, count) / math.comb(patches, count) for m in marked.sum(1)]
  return float(np.mean(hits)), float(1 - np.mean(miss))
