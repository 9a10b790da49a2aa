"""A ViT with three branches: self-attention, global-local and pair-wise cross-attention."""

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from h2g.errors import InputError
from h2g.models.vit import ViT
from h2g.nn import split
from h2g.nn.heads import Classified
from h2g.nn.heads import ClassTokenHead
from h2g.nn.heads import UncertaintyWeighting
from h2g.nn.transformer import Block
from h2g.ops.attention import attention
from h2g.ops.cross import derangement
from h2g.ops.cross import pairwise_attention
from h2g.ops.cross import selected_queries
from h2g.ops.rollout import rollout_row

CHOICES = {
  "distractors": ("pwca", "sa", "noise"),
  "selection": ("rollout", "random"),
  "read": ("cls", "mean"),
}


class DCALViT(nnx.Module):
  """One ViT, three branches. GLCA has a block, a norm and a head of its own; PWCA has nothing.

    sa    the network
    glca  the tokens that the class token attended most over all blocks ask all tokens, one block
    pwca  the network, each image asking its own and another image's keys; for training alone

  Axes: B images, N patches, D width.
  Source: arXiv 2205.02151.
  """

  def __init__(
    self,
    num_classes: int,
    *,
    branches: tuple[str, ...] = ("sa", "glca", "pwca"),
    ratio: float = 0.1,
    selection: str = "rollout",
    distractors: str = "pwca",
    read: str = "cls",
    bnneck: bool = False,
    rngs: nnx.Rngs,
    **vit,
  ):
    """vit: settings of `ViT`.

    Args:
      num_classes: of both classifiers.
      branches: those that are trained, "sa" among them.
      ratio: share of the patches that GLCA selects.
      selection: of them, "rollout" or "random".
      distractors: whose keys PWCA adds: of the other image in the "pwca" branch or the "sa"
        branch, or "noise" with the deviation of the image's own keys and values.
      read: what the head of GLCA sees of its rows, the class token's or their mean. Rows do not
        interact, so the class token's is the same whatever else is selected.
      bnneck: see `ClassTokenHead`.
    """
    for name, value in dict(distractors=distractors, selection=selection, read=read).items():
      if value not in CHOICES[name]:
        raise InputError(f"{name}={value!r} is unknown: choose from {', '.join(CHOICES[name])}")
    if "sa" not in branches or set(branches) - {"sa", "glca", "pwca"}:
      raise InputError(f"branches={branches}: sa, and glca, pwca or both")
    self.vit = ViT(**vit, rngs=rngs)
    dim, blocks = self.vit.to_tokens.out_features, self.vit.blocks
    head = lambda: ClassTokenHead(dim, num_classes, bnneck=bnneck, rngs=rngs)
    self.head, self.weighting = head(), UncertaintyWeighting(len(branches))
    self.branches, self.ratio, self.read = branches, ratio, read
    self.selection, self.distractors = selection, distractors
    heads, inside = blocks[0].attention.num_heads, blocks[0].mlp.up.out_features
    with_glca = "glca" in branches
    block = lambda: Block(dim, heads, mlp_ratio=inside / dim, rngs=rngs)
    norm = lambda: nnx.LayerNorm(dim, epsilon=1e-6, rngs=rngs)
    self.glca_block = block() if with_glca else None
    self.glca_norm = norm() if with_glca else None
    self.glca_head = head() if with_glca else None

  def __call__(self, images: Array, *, key: Array | None = None) -> dict[str, Classified]:
    """Each branch of images [B, height, width, 3]; without a key evaluates, without PWCA."""
    sa_key, pair_key, partner_key, glca_key, select_key = split(key, 5)
    x = self.vit.with_class_token(self.vit.embed(images))
    z, seen = self.encode(x, key=sa_key)
    train = key is not None
    found = {"sa": self.head(self.vit.norm(z[:, 0]), train=train)}
    if self.glca_block is not None:
      ids = self.selected(seen, key=select_key)
      y = self.glca_block(jnp.take_along_axis(z, ids[..., None], 1), context=z, key=glca_key)
      y = self.glca_norm(y[:, 0] if self.read == "cls" else y.mean(1))
      found["glca"] = self.glca_head(y, train=train)
    if train and "pwca" in self.branches:
      y = self.vit.encode(x, attend=self._paired(seen, partner_key), key=pair_key)
      found["pwca"] = self.head(self.vit.norm(y[:, 0]), train=train)
    return found

  def encode(self, x: Array, *, key: Array | None = None) -> tuple[Array, list]:
    """Tokens [B, 1 + N, D] after all blocks, and (q, k, v) of each block on the way."""
    seen = []

    def attend(q, k, v, **options):
      seen.append((q, k, v))
      return attention(q, k, v, **options)

    return self.vit.encode(x, attend=attend, key=key), seen

  def scores(self, seen: list) -> Array:
    """[B, 1 + N]: the class token's row of the rollout over all blocks."""
    return rollout_row(*(jnp.stack(part) for part in list(zip(*seen))[:2]))

  def selected(self, seen: list, *, key: Array | None = None) -> Array:
    """[B, 1 + R] int32: the tokens that ask in GLCA, the class token first."""
    if self.selection == "rollout":
      return selected_queries(self.scores(seen), self.ratio)
    key = jax.random.key(0) if key is None else key
    return selected_queries(jax.random.uniform(key, seen[0][0].shape[:2]), self.ratio)

  def _paired(self, seen: list, key: Array):
    """The attention of PWCA, block after block."""
    partner, layers = derangement(key, len(seen[0][0])), iter(enumerate(seen))

    def attend(q, k, v, **options):
      layer, (_, sa_k, sa_v) = next(layers)
      others = (sa_k, sa_v) if self.distractors == "sa" else None
      if self.distractors == "noise":
        keys = jax.random.split(jax.random.fold_in(key, layer))
        noise = lambda key, x: jax.random.normal(key, x.shape) * jax.lax.stop_gradient(x.std())
        others = noise(keys[0], k), noise(keys[1], v)
      return pairwise_attention(q, k, v, partner, others=others, **options)

    return attend
