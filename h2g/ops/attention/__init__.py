"""Dense softmax attention and its statistics: see `attention`.

Implementations: `reference` (the definition), `xla` (anywhere), `cudnn`, `mosaic_gpu` (Hopper),
`mosaic_tpu`. The kernels lower for their platforms in the tests, those for TPU also run in the
interpreter; none has run on the hardware yet.
"""

from h2g.ops.attention.api import attention
from h2g.ops.attention.api import IMPLEMENTATIONS
from h2g.ops.attention.api import ORDER
from h2g.ops.attention.call import AttentionOut
from h2g.ops.attention.call import Indices
from h2g.ops.attention.call import TopKeys

__all__ = ["IMPLEMENTATIONS", "ORDER", "AttentionOut", "Indices", "TopKeys", "attention"]
