"""A few queries over the patches beat a linear probe, and match multi-head pooling for less."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.efficient_probing import encoder
from experiments.efficient_probing.experiment import probe
from h2g.metrics import knn_chosen
from h2g.metrics import map_entropy
from h2g.metrics import map_similarity
from h2g.nn.pooling import conversion_error
from h2g.nn.pooling import EfficientProbing
from h2g.nn.pooling import MultiHeadPool
from h2g.nn.pure import pure
from h2g.papers import Finding
from h2g.papers import in_turns
from h2g.papers import Runs

OURS, PEER = "tiny", "tiny,pool=mhca"  # eight queries, eight heads
MEASURES = (map_similarity, map_entropy)  # how complementary maps are, how sharp


def check(runs: Runs) -> list[Finding]:
  """The sentences of the claim; accuracies are means over seeds."""
  fewer = [f"tiny,queries={num}" for num in (1, 2, 4)]
  supervised, drawn = (
    [f"tiny,pool={pool},objective={objective}" for pool in pools]
    for objective, pools in (("cls", ("ep", "cls")), ("none", ("ep", "gap")))
  )
  runs.prepare(OURS, PEER, "tiny,pool=gap", "tiny,pool=cls", *fewer, *supervised, *drawn)
  above = lambda other: runs.mean(OURS) - runs.mean(other)
  one, two, four = map(runs.mean, fewer)
  apart = conversion_error(dim=96, num_heads=8)
  share = runs.num_params(OURS, "^pool/") / runs.num_params(PEER, "^pool/")
  gaps = [
    runs.mean(ours) - runs.mean(token) for ours, token in ((OURS, "tiny,pool=cls"), supervised)
  ]
  reported = looks(runs) | {
    "EP and the mean on the encoder before its training": list(map(runs.mean, drawn)),
    "1, 2, 4 queries": [one, two, four],
  }
  return [
    Finding.compare("accuracy of EP - of the mean (LP-GAP)", above("tiny,pool=gap"), at_least=0.05),
    Finding.compare("accuracy of EP - of the class token", gaps[0], at_least=0.05),
    Finding.compare("accuracy of EP - of multi-head pooling", above(PEER), at_least=-0.01),
    Finding.at_most("its pooling's parameters over multi-head's", share, 0.6),
    Finding.at_most("its time, forward and backward, over multi-head's", time_ratio(runs), 1.0),
    Finding.at_most("largest difference of a multi-head pooling and its queries", apart, 1e-5),
    Finding.above("accuracy of 8 queries - of 1", runs.mean(OURS), one),
    Finding.at_most("gap to the class token where that was trained / here", gaps[1] / gaps[0], 0.5),
    *(
      Finding(f"reported: {name}", bool(np.isfinite(found).all()), str(np.round(found, 3)))
      for name, found in reported.items()
    ),
  ]


def time_ratio(runs: Runs, rounds: int = 15) -> float:
  """Median time of EP's pooling over multi-head's on a batch, in turns: gradients by all inputs."""
  config = runs.config(OURS)
  parts = encoder.precomputed(config.encoder, config.data)
  x = jnp.asarray(parts["train"][0][: config.batch_size, 1:])
  calls = []
  for kind in (EfficientProbing, MultiHeadPool):
    model = pure(lambda rngs, kind=kind: kind(x.shape[-1], config.probe.queries, rngs=rngs))
    params, rest = model.init(jax.random.key(0))
    score = lambda p, x, model=model, rest=rest: (model.bind(p, rest)(x).out ** 2).sum()
    calls.append(functools.partial(jax.jit(jax.grad(score, (0, 1))), params, x))
  ours, peer = in_turns(calls, rounds)
  return ours / peer


def looks(runs: Runs) -> dict[str, list[float]]:
  """Of the maps on test images, and of the tokens without a probe (k and T by validation)."""
  config = runs.config(OURS)
  parts = encoder.precomputed(config.encoder, config.data)
  tokens = jnp.asarray(parts["test"][0])
  model = probe(config.probe, tokens.shape[-1])
  weights = jax.jit(lambda params, rest: model.bind(params, rest).pooled(tokens).weights)
  maps = [np.asarray(weights(*seed)) for seed in runs.seeds(OURS)]
  mean, first = lambda x: x[:, 1:].mean(1), lambda x: x[:, 0]
  near = lambda pick: knn_chosen(**{name: (pick(x), y) for name, (x, y) in parts.items()})
  return {
    "similarity and entropy of the maps": [np.mean([f(w) for w in maps]) for f in MEASURES],
    "k-NN by the mean, by the class token": [near(mean), near(first)],
  }
