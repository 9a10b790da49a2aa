"""Cross-attention within an image and between images: who asks, and whose keys answer."""

from h2g.ops.cross.api import derangement as derangement
from h2g.ops.cross.api import global_local_attention as global_local_attention
from h2g.ops.cross.api import pairwise_attention as pairwise_attention
from h2g.ops.cross.api import selected_queries as selected_queries
