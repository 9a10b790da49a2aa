"""A training step of the decoder, beside the same model in compiled torch.

  python experiments/speed/decoder.py --json rows.json

"fwd+bwd" is the loss and its gradients, "step" adds AdamW. The peer has the same weights: the
norms, rotary positions, grouped heads and tied ends of `h2g/models/decoder.py`, torch's fused
attention and optimiser, all of it under `torch.compile`. Tokens per second are the sequences'
tokens over a time.
"""

from collections.abc import Iterator
import functools
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # runs from a clone, too

from experiments.speed import harness  # isort: skip  (before torch and jax: OMP_WAIT_POLICY)

import jax
import jax.numpy as jnp
import numpy as np
import optax

from h2g.models import decoder
from h2g.nn.pure import pure

SWIGLU = {"vocab_size": 256, "mlp": "swiglu", "key_heads": 2}
# name: (settings of `Decoder`, those of configs/text.py, sequences, tokens of each, dtype)
SHAPES = {
  "cpu": {
    "0.8M B16 T128": (
      SWIGLU | {"dim": 128, "num_layers": 4, "num_heads": 4},
      *(16, 128, "float32"),
    ),
    "10M B4 T256": (
      SWIGLU | {"dim": 384, "num_layers": 6, "num_heads": 6},
      *(4, 256, "float32"),
    ),
  },
  "gpu": {
    "124M B16 T1024": (
      {"vocab_size": 50257, "mlp": "gelu", "dim": 768, "num_layers": 12, "num_heads": 12},
      *(16, 1024, "bfloat16"),
    )
  },
}
SHAPES["tpu"] = SHAPES["gpu"]
LR = 1e-3


def torch_loss(shape: dict, dtype: str):
  """(weights in the order of `named`, tokens, following) -> mean -log p, written for torch."""
  import torch
  from torch.nn import functional

  heads, key_heads = shape["num_heads"], shape.get("key_heads", shape["num_heads"])
  width = shape["dim"] // heads
  kind = getattr(torch, dtype)

  def norm(x, scale):
    return functional.rms_norm(x, scale.shape, scale, eps=1e-6)

  def turn(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

  def loss(weights, tokens, following):
    w = {name: value.to(kind) for name, value in weights.items()}
    half = torch.arange(width // 2, device=tokens.device) / (width // 2)
    angles = torch.arange(tokens.shape[1], device=tokens.device)[:, None] * 10_000.0**-half
    cos, sin = angles.cos().to(kind), angles.sin().to(kind)
    x = functional.embedding(tokens, w["embedding"])
    for at in range(shape["num_layers"]):
      of = lambda name, at=at: w[f"blocks.{at}.{name}"]
      y = norm(x, of("norm.scale"))
      split = lambda z, n: z.unflatten(-1, (n, width)).transpose(1, 2)
      q = turn(split(y @ of("attention.query.kernel"), heads), cos, sin)
      k = turn(split(y @ of("attention.key.kernel"), key_heads), cos, sin)
      v = split(y @ of("attention.value.kernel"), key_heads)
      k, v = (z.repeat_interleave(heads // key_heads, 1) for z in (k, v))
      o = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
      x = x + o.transpose(1, 2).flatten(2) @ of("attention.out.kernel")
      y = norm(x, of("mlp_norm.scale"))
      inside = y @ of("mlp.up.kernel")
      if shape["mlp"] == "swiglu":
        inside = functional.silu(y @ of("mlp.gate.kernel")) * inside
      else:
        inside = functional.gelu(inside, approximate="tanh")
      x = x + inside @ of("mlp.down.kernel")
    logits = (norm(x, w["norm.scale"]) @ w["embedding"].T).float()
    return functional.cross_entropy(logits.flatten(0, 1), following.flatten())

  return torch.compile(loss)


def torch_grads(loss, weights, tokens, following):
  """[loss, gradients by the names' order]."""
  import torch

  value = loss(weights, tokens, following)
  return [value, *torch.autograd.grad(value, list(weights.values()))]


def torch_step(loss, weights, tokens, following):
  """A run of whole steps; the loss before the step comes out."""
  import torch

  weights = {name: value.detach().clone().requires_grad_() for name, value in weights.items()}
  optimizer = torch.optim.AdamW(weights.values(), lr=LR, fused=True)

  def run():
    optimizer.zero_grad(set_to_none=True)
    value = loss(weights, tokens, following)
    value.backward()
    optimizer.step()
    return value

  return run


def named(params) -> dict[str, jax.Array]:
  """{"blocks.0.norm.scale": leaf, ...}, in the order of the leaves."""
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return {".".join(str(k.key) for k in path): leaf for path, leaf in leaves}


def cases(platform: str) -> Iterator[harness.Case]:
  absent = harness.missing("torch")
  for name, (shape, batch, length, dtype) in SHAPES[platform].items():
    model = pure(lambda rngs, shape=shape: decoder.Decoder(**shape, rngs=rngs))
    params, rest = model.init(jax.random.key(0))
    tokens = np.random.default_rng(0).integers(0, 256, (2, batch, length))
    tokens, following = (jnp.asarray(x, jnp.int32) for x in tokens)
    optimizer = optax.adamw(LR, weight_decay=0.01)

    def loss(params, tokens, following, model=model, rest=rest, dtype=dtype):
      if dtype != "float32":
        params = optax.tree.cast(params, dtype)
      logits = model.bind(params, rest)(tokens)
      return optax.softmax_cross_entropy_with_integer_labels(logits, following).mean()

    def graded(params, tokens, following, loss=loss):
      value, pulled = jax.value_and_grad(loss)(params, tokens, following)
      return [value, *jax.tree.leaves(pulled)]

    def step(params, state, tokens, following, loss=loss, optimizer=optimizer):
      value, pulled = jax.value_and_grad(loss)(params, tokens, following)
      updates, state = optimizer.update(pulled, state, params)
      return optax.apply_updates(params, updates), state, value

    def steps(params=params, step=step, optimizer=optimizer, data=(tokens, following)):
      """Whole steps, the state given away to the next one as the trainer does."""
      compiled = jax.jit(step, donate_argnums=(0, 1))
      at = [jax.tree.map(jnp.copy, params), optimizer.init(params)]

      def run():
        *at[:], value = compiled(*at, *data)
        return jax.block_until_ready(value)

      return run

    peers = dict.fromkeys(("fwd+bwd", "step"), absent)
    if not absent:
      import torch

      device = "cuda" if torch.cuda.is_available() else "cpu"
      weights = {
        key: harness.to_torch(np.array(leaf)).requires_grad_()
        for key, leaf in named(params).items()
      }
      data = [
        torch.as_tensor(np.array(x), dtype=torch.long, device=device) for x in (tokens, following)
      ]
      theirs = torch_loss(shape, dtype)
      peers = {
        "fwd+bwd": harness.torch_run(functools.partial(torch_grads, theirs, weights, *data)),
        "step": harness.torch_run(torch_step(theirs, weights, *data)),
      }
    matrices = sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim >= 2)
    counted = dict(num_layers=shape["num_layers"], dim=shape["dim"], length=length)
    wanted = functools.partial(harness.in_float64, jax.jit(graded), params, tokens, following)
    for part in ("fwd+bwd", "step"):
      yield harness.Case(
        op="decoder",
        name=name,
        part=part,
        ours=harness.jax_run(graded, params, tokens, following) if part != "step" else steps(),
        peers={"torch compiled": peers[part]},
        wanted=wanted if part != "step" else lambda wanted=wanted: wanted()[0],
        tolerance=1e-4 if dtype == "float32" else 5e-2,
        flops=decoder.train_flops(matrices, batch * length, **counted),
      )


if __name__ == "__main__":
  harness.main(cases, __doc__, "torch")
