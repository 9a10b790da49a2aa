"""PEM: a backbone, a convolutional pixel decoder, and queries that read prototypes.

Its attention is `h2g.nn.prototype`, over `h2g.ops.prototype`. Source: arXiv 2402.19422.
"""

import functools

from flax import nnx
from jax import Array

from h2g.errors import InputError
from h2g.models.backbones import backbone
from h2g.models.mask_decoder import MaskDecoder
from h2g.models.mask_decoder import MaskedCrossAttention
from h2g.models.mask_decoder import Masks
from h2g.models.pixel_decoder import PixelDecoder
from h2g.nn.prototype import PrototypeCrossAttention


class Segmenter(nnx.Module):
  """Backbone, pixel decoder, mask decoder."""

  def __init__(
    self,
    num_classes: int,
    *,
    network: str = "small",
    attention: str = "prototype",
    conv_dim: int = 128,
    mask_dim: int = 256,
    double_sigmoid: bool = True,
    normalise: str = "queries",
    when_empty: str = "query",
    backbone_norm: str = "batch",
    norm: str = "batch",
    rngs: nnx.Rngs,
    **decoder,
  ):
    """attention: "prototype" (PEM), "masked" (Mask2Former), "random" (a random allowed pixel).

    decoder: settings of `MaskDecoder`.
    """
    prototypes = functools.partial(
      PrototypeCrossAttention, normalise=normalise, when_empty=when_empty, norm=norm
    )
    known = {
      "prototype": prototypes,
      "masked": MaskedCrossAttention,
      "random": functools.partial(prototypes, choice="random"),
    }
    if attention not in known:
      raise InputError(f"attention={attention!r} is unknown: choose from {', '.join(known)}")
    self.backbone = backbone(network, norm=backbone_norm, rngs=rngs)
    self.pixels = PixelDecoder(
      self.backbone.widths, conv_dim, mask_dim, double_sigmoid=double_sigmoid, norm=norm, rngs=rngs
    )
    self.decoder = MaskDecoder(
      conv_dim, mask_dim, num_classes, cross=known[attention], rngs=rngs, **decoder
    )

  def __call__(self, images: Array, *, key: Array | None = None) -> Masks:
    """Predictions from float images [B, height, width, 3]."""
    return self.decoder(*self.pixels(self.backbone(images)), key=key)
