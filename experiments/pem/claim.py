"""Prototypes segment like masked attention, better than random pixels, and cost less."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.pem.experiment import segmenter
from h2g.data.photographs import normalise
from h2g.data.scenes import scenes
from h2g.models.mask_decoder import MaskedCrossAttention
from h2g.nn.image import Reading
from h2g.nn.image import sine_grid
from h2g.nn.prototype import PrototypeCrossAttention
from h2g.nn.pure import pure
from h2g.papers import Finding
from h2g.papers import in_turns
from h2g.papers import Runs

MASKED, RANDOM = "tiny,attention=masked", "tiny,attention=random"


def check(runs: Runs) -> list[Finding]:
  """The sentences of the claim; mIoU and PQ in points, means over seeds."""
  pq = lambda variant: runs.metrics(variant)["test/pq"]
  runs.prepare(MASKED, "tiny", RANDOM)
  ours, masked, random = (runs.mean(variant) for variant in ("tiny", MASKED, RANDOM))
  prototype, softmax = cross_attentions()
  faster, flops = softmax.seconds / prototype.seconds, prototype.flops / softmax.flops
  share, cosine = redundancy(runs)
  return [
    Finding.compare("mIoU of PEM - of masked attention", ours - masked, at_least=-2.0),
    Finding.compare("PQ of PEM - of masked attention", pq("tiny") - pq(MASKED), at_least=-2.0),
    Finding.compare("mIoU of PEM - of a random allowed pixel", ours - random, at_least=5.0),
    Finding.compare("PQ of PEM - of a random allowed pixel", pq("tiny") - pq(RANDOM), at_least=5.0),
    Finding(
      "cross-attention over 16,384 pixels: 1.3 times as fast, or fewer flops, than masked",
      bool(faster >= 1.3 or flops < 1.0),
      f"{faster:.2f} times as fast, {flops:.2f} of the flops",
    ),
    Finding("queries with empty masks never give NaN", *never_nan()),
    Finding(
      "reported: redundancy in masked attention (its top pixel's share; cosine to the average)",
      bool(np.isfinite(share) and np.isfinite(cosine)),
      f"share {share:.3f}, cosine {cosine:.3f}",
    ),
  ]


class Cost(NamedTuple):
  """seconds: of a call; flops: by XLA's cost analysis of the form without loops, whose bodies it
  would count once."""

  seconds: float
  flops: float


def cross_attentions(
  *, side: int = 128, queries: int = 100, dim: int = 256, heads: int = 8, rounds: int = 9
) -> list[Cost]:
  """Of PEM's and Mask2Former's whole cross-attention on one image, forward, masks on."""
  rng = np.random.default_rng(0)
  array = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  places, mask = sine_grid(side, side, dim), array(1, queries, side**2) > 0
  reading = Reading(array(1, side, side, dim), places, array(queries, dim), mask)
  calls, flops = [], []
  for kind in (PrototypeCrossAttention, MaskedCrossAttention):
    model = pure(lambda rngs, kind=kind: kind(dim, heads, rngs=rngs))
    params, rest = model.init(jax.random.key(0))

    def call(params, x, reading, implementation=None, model=model, rest=rest):
      module = model.bind(params, rest)
      module.eval()
      module.implementation = implementation
      return module(x, reading)

    arguments = params, array(1, queries, dim), reading
    whole = jax.jit(functools.partial(call, implementation="reference")).lower(*arguments)
    flops.append(whole.compile().cost_analysis()["flops"])
    calls.append(functools.partial(jax.jit(call), *arguments))
  return [Cost(*pair) for pair in zip(in_turns(calls, rounds), flops)]


def never_nan() -> tuple[bool, str]:
  """Values and gradients of the module where masks are empty for one query, and for all."""
  rng = np.random.default_rng(0)
  array = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  partly = jnp.ones((2, 5, 16), bool).at[0, 2].set(False)
  finite = []
  for when_empty in ("query", "batch"):
    model = pure(
      lambda rngs, rule=when_empty: PrototypeCrossAttention(8, 2, when_empty=rule, rngs=rngs)
    )
    params, rest = model.init(jax.random.key(0))
    for mask in (partly, jnp.zeros_like(partly)):
      reading = Reading(array(2, 4, 4, 8), array(4, 4, 8), array(5, 8), mask)
      value = lambda p, x, r=reading, m=model, s=rest: (m.bind(p, s)(x, r) ** 2).sum()
      found = jax.jit(jax.value_and_grad(value, (0, 1)))(params, array(2, 5, 8))
      finite.append(all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(found)))
  return all(finite), f"finite in {sum(finite)} of {len(finite)} cases, values and gradients"


def redundancy(runs: Runs, num: int = 32) -> tuple[float, float]:
  """In the trained masked attention, over test scenes, queries, heads, layers and seeds:

  the weight of its top pixel, and the cosine between that pixel's value and what is read.
  """
  config = runs.config(MASKED)
  images = normalise(scenes(num, seed=10 * config.data.seed + 3, size=config.data.size).images)

  @jax.jit
  def measure(params, rest):
    module = segmenter(config).bind(params, rest)
    module.eval()
    levels, features = module.pixels(module.backbone(images))
    found = []
    for before, reading, block, _ in module.decoder.stages(levels, features):
      if block is None:
        continue
      weights, values = block.cross.weights(before, reading)
      read = weights @ values
      top = jnp.take_along_axis(values, weights.argmax(-1)[..., None], axis=2)
      norm = lambda x: jnp.linalg.norm(x, axis=-1)
      cosine = (read * top).sum(-1) / (norm(read) * norm(top) + 1e-12)
      found.append((weights.max(-1).mean(), cosine.mean()))
    return jnp.asarray(found).mean(0)

  return tuple(np.mean([measure(*seed) for seed in runs.seeds(MASKED)], axis=0).tolist())
