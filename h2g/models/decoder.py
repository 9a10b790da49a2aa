"""The decoder on sequences of tokens: pre-norm, rotary positions, grouped key heads, tied ends."""

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.errors import InputError
from h2g.nn.rotary import RMSNorm
from h2g.nn.rotary import rotary
from h2g.ops import masks
from h2g.ops.attention import attention

# What the backward pass of a block computes again: nothing, all, or all but its matrix products.
REMAT = {
  "none": None,
  "full": jax.checkpoint_policies.nothing_saveable,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
MLPS = ("swiglu", "gelu")
SCALE = 0.02  # standard deviation of the weights at the start


class CausalAttention(nnx.Module):
  """out = concat_h softmax(rot(q_h) rot(k_g)^T / sqrt(D)) v_g W_o over the past, g = h // (H // K).

  Source: arXiv 1706.03762 sec. 3.2.2; grouped heads arXiv 2305.13245.
  """

  def __init__(
    self, dim: int, num_heads: int, key_heads: int, *, out_scale: float, base: float, rngs: nnx.Rngs
  ):
    width = dim // num_heads
    self.query = linear(dim, dim, rngs)
    self.key = linear(dim, key_heads * width, rngs)
    self.value = linear(dim, key_heads * width, rngs)
    self.out = linear(dim, dim, rngs, out_scale)
    self.width, self.base = width, base

  def __call__(self, x: Array) -> Array:
    """[B, T, dim] -> [B, T, dim]."""
    heads = lambda y: y.reshape(*y.shape[:2], -1, self.width)
    q, k, v = heads(self.query(x)), heads(self.key(x)), heads(self.value(x))
    positions = jnp.arange(x.shape[1])
    q, k = (rotary(y, positions, base=self.base) for y in (q, k))
    return self.out(attention(q, k, v, mask=masks.causal()).reshape(x.shape))


class FeedForward(nnx.Module):
  """W_down (silu(x W_gate) * x W_up) ("swiglu", arXiv 2002.05202), or W_down gelu(x W_up)."""

  def __init__(self, dim: int, inside: int, kind: str, *, out_scale: float, rngs: nnx.Rngs):
    self.gate = linear(dim, inside, rngs) if kind == "swiglu" else None
    self.up = linear(dim, inside, rngs)
    self.down = linear(inside, dim, rngs, out_scale)

  def __call__(self, x: Array) -> Array:
    if self.gate is None:
      return self.down(jax.nn.gelu(self.up(x)))
    return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class DecoderBlock(nnx.Module):
  """x + attention(norm(x)), then x + mlp(norm(x))."""

  def __init__(self, attend: CausalAttention, mlp: FeedForward, dim: int, *, rngs: nnx.Rngs):
    self.norm, self.attention = RMSNorm(dim, rngs=rngs), attend
    self.mlp_norm, self.mlp = RMSNorm(dim, rngs=rngs), mlp

  def __call__(self, x: Array) -> Array:
    x = x + self.attention(self.norm(x))
    return x + self.mlp(self.mlp_norm(x))


class Decoder(nnx.Module):
  """logits[t] = E norm(block_L(... block_1(E[token[t]]))): of token t + 1, from tokens up to t.

  Axes: B sequences, T tokens, V vocabulary.
  Source: the GPT-2 report (2019) for the arrangement and the start, with rotary positions and
    RMSNorm in place of learned positions and LayerNorm, and without biases, as in arXiv 2302.13971.
  """

  def __init__(
    self,
    *,
    vocab_size: int,
    dim: int,
    num_layers: int,
    num_heads: int,
    key_heads: int = 0,
    mlp: str = "swiglu",
    mlp_dim: int = 0,
    rope_base: float = 10_000.0,
    remat: str = "none",
    rngs: nnx.Rngs,
  ):
    """The network; InputError where the widths do not fit.

    Args:
      vocab_size: V.
      dim: width of the stream.
      num_layers: blocks.
      num_heads: of queries; divides dim into an even width.
      key_heads: of keys and values; divides num_heads; 0 takes as many.
      mlp: one of MLPS.
      mlp_dim: width inside; 0 takes four times dim, or 8/3 of it for swiglu, which has a third
        matrix.
      rope_base: longest wavelength over 2 pi.
      remat: one of REMAT, memory against a second forward pass.
    """
    key_heads = key_heads or num_heads
    if dim % (2 * num_heads) or num_heads % key_heads:
      raise InputError(
        f"dim={dim}, num_heads={num_heads}, key_heads={key_heads} do not fit: dim must be a "
        "multiple of 2 * num_heads, num_heads one of key_heads"
      )
    for name, value, known in (("mlp", mlp, MLPS), ("remat", remat, REMAT)):
      if value not in known:
        raise InputError(f"{name}={value!r} is unknown; choose from {', '.join(known)}")
    inside = mlp_dim or (-(-8 * dim // (3 * 32)) * 32 if mlp == "swiglu" else 4 * dim)
    out_scale = SCALE * (2 * num_layers) ** -0.5  # the stream is a sum of 2 L updates

    def block():
      attend = CausalAttention(
        dim, num_heads, key_heads, out_scale=out_scale, base=rope_base, rngs=rngs
      )
      forward = FeedForward(dim, inside, mlp, out_scale=out_scale, rngs=rngs)
      return DecoderBlock(attend, forward, dim, rngs=rngs)

    self.embedding = nnx.Param(SCALE * jax.random.normal(rngs.params(), (vocab_size, dim)))
    self.blocks = nnx.List([block() for _ in range(num_layers)])
    self.norm = RMSNorm(dim, rngs=rngs)
    self.remat = remat

  def __call__(self, tokens: Array) -> Array:
    """[B, T] int tokens -> [B, T, V] float32 logits."""
    table = self.embedding[...]
    x = table[tokens]
    run = lambda block, x: block(x)
    if self.remat != "none":
      run = nnx.remat(run, policy=REMAT[self.remat])
    for block in self.blocks:
      x = run(block, x)
    return jnp.einsum("btd,vd->btv", self.norm(x), table, preferred_element_type=jnp.float32)


def linear(inputs: int, outputs: int, rngs: nnx.Rngs, scale: float = SCALE) -> nnx.Linear:
  """x W, W normal with standard deviation `scale`."""
  init = nnx.initializers.normal(scale)
  return nnx.Linear(inputs, outputs, use_bias=False, kernel_init=init, rngs=rngs)


def train_flops(params: int, tokens: int, *, num_layers: int, dim: int, length: int) -> float:
  """Multiply-adds times two of a training step, forward and backward, nothing computed twice.

    6 N per token for N weights in matrices (the tied table once), 6 L dim T for causal attention.

  Source: arXiv 2204.02311 appendix B, halved for the causal mask.
  """
  return float(tokens) * (6.0 * params + 6.0 * num_layers * dim * length)
