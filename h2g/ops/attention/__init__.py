"""Dense softmax attention and its statistics: see `attention`.

In progress: its contract tests have not landed, and some of them fail (padding marked by lengths
per batch entry; a gradient at length 1). Not for use yet.
"""

from h2g.ops.attention.api import attention
from h2g.ops.attention.api import IMPLEMENTATIONS
from h2g.ops.attention.api import ORDER
from h2g.ops.attention.call import AttentionOut
from h2g.ops.attention.call import Indices
from h2g.ops.attention.call import TopKeys

__all__ = ["IMPLEMENTATIONS", "ORDER", "AttentionOut", "Indices", "TopKeys", "attention"]
