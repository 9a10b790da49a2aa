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
from h2g.nn.pooling import EfficientProbing
from h2g.nn.pooling import mhca_to_mqca
from h2g.nn.pooling import MultiHeadPool
from h2g.nn.pure import pure
from h2g.papers import Finding
from h2g.papers import in_turns
from h2g.papers import Runs

OURS, PEER = "tiny", "tiny,pool=mhca"  # eight queries, eight heads


def check(runs: Runs) -> list[Finding]:
  """The sentences of the claim; accuracies are means over seeds."""
  above = lambda other: runs.mean(OURS) - runs.mean(other)
  few = [runs.mean(f"tiny,queries={num}") for num in (1, 2, 4)] + [runs.mean(OURS)]
  share = pooling_size(runs, OURS) / pooling_size(runs, PEER)
  gaps = [
    runs.mean(f"tiny{objective}") - runs.mean(f"tiny,pool=cls{objective}")
    for objective in ("", ",objective=cls")
  ]
  return [
    Finding.compare("accuracy of EP - of the mean (LP-GAP)", above("tiny,pool=gap"), at_least=0.05),
    Finding.compare("accuracy of EP - of the class token", gaps[0], at_least=0.05),
    Finding.compare("accuracy of EP - of multi-head pooling", above(PEER), at_least=-0.01),
    Finding.at_most("its pooling's parameters over multi-head's", share, 0.6),
    Finding.at_most("its time, forward and backward, over multi-head's", time_ratio(runs), 1.0),
    Finding.at_most("largest difference of a multi-head pooling and its queries", gap(), 1e-5),
    Finding.compare("accuracy of 8 queries - of 1", few[-1] - few[0], at_least=0.0),
    Finding.at_most("gap to the class token where that was trained / here", gaps[1] / gaps[0], 0.5),
  ]


def pooling_size(runs: Runs, variant: str) -> int:
  """Parameters of the pooling alone."""
  config = runs.config(variant)
  params, _ = jax.eval_shape(
    probe(config.probe, config.encoder.config.vit.dim).init, jax.random.key(0)
  )
  return sum(leaf.size for leaf in jax.tree.leaves(params["pool"]))


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


def gap(dim: int = 96, heads: int = 8) -> float:
  """Largest difference of a random multi-head pooling, maps and output, from its conversion."""
  mhca = pure(lambda rngs: MultiHeadPool(dim, heads, rngs=rngs))
  params, rest = mhca.init(jax.random.key(0))
  params["u"] = jax.random.normal(jax.random.key(1), (dim,))
  x = jax.random.normal(jax.random.key(2), (16, 64, dim))
  ep = pure(lambda rngs: EfficientProbing(dim, heads, rngs=rngs))
  ours = ep.bind(mhca_to_mqca(params, heads), {})(x)
  theirs = mhca.bind(params, rest)(x)
  out = ours.out @ params["attention"]["out"]["kernel"]
  return float(max(abs(ours.weights - theirs.weights).max(), abs(out - theirs.out).max()))


def maps(runs: Runs, variant: str) -> list[np.ndarray]:
  """[images, queries, patches] of the test part, by each seed's trained probe."""
  config = runs.config(variant)
  tokens = encoder.precomputed(config.encoder, config.data)["test"][0]
  model = probe(config.probe, tokens.shape[-1])
  run = jax.jit(lambda params, rest: model.bind(params, rest).pooled(jnp.asarray(tokens)).weights)
  return [np.asarray(run(*seed)) for seed in runs.seeds(variant)]


def looks(runs: Runs, variant: str) -> tuple[float, float]:
  """(similarity, entropy) of a variant's maps: how complementary, how sharp; means over seeds."""
  return tuple(np.mean([(map_similarity(w), map_entropy(w)) for w in maps(runs, variant)], axis=0))


def neighbours(runs: Runs, variant: str = OURS, *, token: str = "mean") -> float:
  """Test accuracy of k-NN on the class token or the mean of the patches, k and T by validation."""
  config = runs.config(variant)
  parts = encoder.precomputed(config.encoder, config.data)
  pick = (lambda x: x[:, 0]) if token == "class" else (lambda x: x[:, 1:].mean(1))
  of = lambda name: (pick(parts[name][0]), parts[name][1])
  return knn_chosen(of("train"), of("val"), of("test"))
