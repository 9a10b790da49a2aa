"""Images read between their pixels: bilinear samples, and convolutions over them."""

from h2g.ops.deform.api import bilinear as bilinear
from h2g.ops.deform.api import deform_conv as deform_conv
