"""Dense softmax attention and its statistics: see `attention`.

CPU form tested; the cuDNN form is checked for what it refuses, and has not run on a GPU here.
"""

from h2g.ops.attention.api import attention
from h2g.ops.attention.api import IMPLEMENTATIONS
from h2g.ops.attention.api import ORDER
from h2g.ops.attention.call import AttentionOut
from h2g.ops.attention.call import Indices
from h2g.ops.attention.call import TopKeys

__all__ = ["IMPLEMENTATIONS", "ORDER", "AttentionOut", "Indices", "TopKeys", "attention"]
