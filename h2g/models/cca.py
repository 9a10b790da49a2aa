"""Networks `f(image, attribute) -> unit vector`: conditional cross attention and its baselines.

All of them split in two: `tokens(images)` never sees the condition, and `spaces(tokens,
conditions)` reads it out for as many conditions as asked. A vision transformer does the rest.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.errors import InputError
from h2g.models.vit import ViT
from h2g.nn.losses import unit
from h2g.nn.pure import pure


class ConditionEmbedding(nnx.Module):
  """A condition c of K as a vector of width D.

  onehot: e_c = W onehot(c) + b. masked: all K rows E [K, D], those of other conditions times zero,
  flattened and through one linear layer. The paper names both forms; that they are these is our
  reading of it.
  """

  def __init__(self, num: int, dim: int, form: str = "onehot", *, rngs: nnx.Rngs):
    if form not in ("onehot", "masked"):
      raise InputError(f"embedding={form!r} is unknown: choose onehot or masked")
    init = nnx.initializers.normal(1.0 if form == "onehot" else (num * dim) ** -0.5)
    rows = nnx.initializers.normal(1.0)
    self.num = num
    self.table = None if form == "onehot" else nnx.Param(rows(rngs.params(), (num, dim)))
    inside = num if form == "onehot" else num * dim
    self.out = nnx.Linear(inside, dim, kernel_init=init, rngs=rngs)

  def __call__(self, conditions: Array) -> Array:
    """[...] int32 -> [..., D]."""
    mask = jax.nn.one_hot(conditions, self.num)
    if self.table is None:
      return self.out(mask)
    kept = jnp.einsum("...k,kd->...kd", mask, self.table[...])
    return self.out(kept.reshape(*mask.shape[:-1], -1))


class Embedder(nnx.Module):
  """A vision transformer, a read-out that may see a condition, a linear layer, unit norm.

  read_out says where the condition enters:

    none     nowhere: one space (after all L blocks, as in the other baselines)
    csn      f = z * relu(m_c), a mask per condition on the final embedding (arXiv 1603.07810)
    film     (1 + scale_c) * cls + shift_c (arXiv 1709.07871), before the linear layer
    single   conditional cross attention: the L-th block asks the tokens with e_c, a query each
    tiled    the same with e_c in place of every token's query; only the first row is read

  The L-th block of `single` and `tiled` is Block(x = Z_r, context = Z, query = e_c): queries,
  keys and values are normalised by one LayerNorm, that of the pretrained block.

  Axes: B images, N patches, D width, C conditions asked for, E embedding width.
  Source: arXiv 2307.13254.
  """

  def __init__(
    self,
    num_conditions: int,
    *,
    read_out: str = "single",
    residual: str = "cls",
    embedding: str = "onehot",
    out_dim: int = 512,
    rngs: nnx.Rngs,
    **vit,
  ):
    """vit: settings of `ViT`; num_layers is L, the conditional block among them.

    Args:
      num_conditions: K.
      read_out: see above.
      residual: what the conditional block adds to: "cls", the image's, or "condition".
      embedding: form of `ConditionEmbedding`.
      out_dim: E.
    """
    if read_out not in ("none", "csn", "film", "single", "tiled"):
      raise InputError(
        f"read_out={read_out!r} is unknown: choose from none, csn, film, single, tiled"
      )
    if residual not in ("cls", "condition"):
      raise InputError(f"residual={residual!r} is unknown: choose cls or condition")
    self.vit = ViT(**vit, rngs=rngs)
    dim = self.vit.to_tokens.out_features
    self.read_out, self.residual = read_out, residual
    self.head = nnx.Linear(dim, out_dim, rngs=rngs)
    crosses, shape = self.crosses, (num_conditions, out_dim)
    embed = lambda: ConditionEmbedding(num_conditions, dim, embedding, rngs=rngs)
    mask = lambda: nnx.Param(0.9 + 0.7 * jax.random.normal(rngs.params(), shape))
    self.condition = embed() if crosses else None
    self.mask = mask() if read_out == "csn" else None
    self.film = nnx.Param(jnp.zeros((num_conditions, 2, dim))) if read_out == "film" else None

  @property
  def crosses(self) -> bool:
    """Whether the last block is conditional cross attention."""
    return self.read_out in ("single", "tiled")

  def tokens(self, images: Array) -> Array:
    """[B, height, width, 3] -> Z [B, 1 + N, D], the same for all conditions."""
    z = self.vit.with_class_token(self.vit.embed(images))
    return self.vit.encode(z, blocks=self.vit.blocks[: -1 if self.crosses else None])

  def spaces(self, z: Array, conditions: Array) -> Array:
    """f(image, c), rows of unit norm, from tokens [B, 1 + N, D].

    Args:
      z: from `tokens`.
      conditions: [B, C] int32; the C rows of an image do not interact.
    Returns:
      [B, C, E].
    """
    cls = jnp.broadcast_to(z[:, :1], (*conditions.shape, z.shape[-1]))
    if self.read_out == "single":
      asking = self.condition(conditions)
      x = cls if self.residual == "cls" else asking
      cls = self.vit.blocks[-1](x, context=z, query=asking)
    elif self.read_out == "tiled":
      cls = jax.vmap(self._tiled, in_axes=(None, 1), out_axes=1)(z, conditions)
    x = self.vit.norm(cls)
    if self.film is not None:
      scale, shift = jnp.moveaxis(self.film[...][conditions], -2, 0)
      x = (1 + scale) * x + shift
    out = self.head(x)
    if self.mask is not None:
      out = out * jax.nn.relu(self.mask[...])[conditions]
    return unit(out)

  def _tiled(self, z: Array, conditions: Array) -> Array:
    """[B, D] first rows of the block, from z [B, 1 + N, D] and conditions [B]."""
    asking = jnp.broadcast_to(self.condition(conditions)[:, None], z.shape)
    x = z if self.residual == "cls" else asking
    return self.vit.blocks[-1](x, context=z, query=asking)[:, 0]

  def attention_map(self, images: Array, conditions: Array) -> Array:
    """Where each condition looks: [B, C, H, 1 + N], the weights of the conditional block."""
    block, z = self.vit.blocks[-1], self.tokens(images)
    heads = block.attention.heads
    q = heads(block.attention.query(block.norm(self.condition(conditions))))
    k = heads(block.attention.key(block.norm(z)))
    logits = jnp.einsum("bchd,bnhd->bchn", q, k) / jnp.sqrt(q.shape[-1])
    return jax.nn.softmax(logits, axis=-1)

  def __call__(self, images: Array, conditions: Array) -> Array:
    """[B, C, E] from images [B, height, width, 3] and conditions [B, C]."""
    return self.spaces(self.tokens(images), conditions)


class Networks(NamedTuple):
  """One network, or one per attribute (without `embed`), as functions of (params, rest, images).

  init: key -> (params, rest). embed: (.., images [B, ...], conditions [B]) -> [B, E].
  spaces: (.., images [B, ...]) -> [B, K, E], all attributes.
  """

  init: Any
  embed: Any
  spaces: Any


def spaces_of(num: int, settings: dict, scale: Callable[[Array], Array]) -> Networks:
  """An `Embedder` for `num` attributes, or with read_out "separate" an unconditional one each.

  Args:
    num: K.
    settings: of `Embedder`.
    scale: images uint8 -> what the network takes.
  """
  separate = settings["read_out"] == "separate"
  settings = settings | ({"read_out": "none"} if separate else {})
  model = pure(lambda rngs: Embedder(num, **settings, rngs=rngs))

  def embed(params, rest, images, conditions):
    return model.bind(params, rest)(scale(images), conditions[:, None])[:, 0]

  def spaces(params, rest, images, num=num):
    every = jnp.broadcast_to(jnp.arange(num), (len(images), num))
    return model.bind(params, rest)(scale(images), every)

  if not separate:
    return Networks(model.init, embed, spaces)

  def each(params, rest, images):
    one = lambda params, rest: spaces(params, rest, images, 1)[:, 0]
    return jax.vmap(one, out_axes=1)(params, rest)

  return Networks(lambda key: jax.vmap(model.init)(jax.random.split(key, num)), None, each)
