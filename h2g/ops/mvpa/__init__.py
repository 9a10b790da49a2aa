"""Multi-variate parallel attention: content, time lag and channel distance in one softmax.

Implementations: `xla` (anywhere), `reference` (the definition), `attention` (two calls of
`h2g.ops.attention`, so its kernels serve it; on request).
"""

from h2g.ops.mvpa.api import IMPLEMENTATIONS as IMPLEMENTATIONS
from h2g.ops.mvpa.api import mvpa as mvpa
from h2g.ops.mvpa.api import ORDER as ORDER
from h2g.ops.mvpa.call import relative_channel_index as relative_channel_index
from h2g.ops.mvpa.call import relative_time_index as relative_time_index
