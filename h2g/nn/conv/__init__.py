"""Graph operators: one layer each, without its norm and activation.

An operator is called `conv(h [N, G], graph, *, key=None) -> [N, G']` and says its width G' as
`out_dim`. Its constructor takes the width it reads first: `Conv(in_dim, ..., rngs=...)`.
"""

from h2g.nn.conv.gcn import GCNConv as GCNConv
from h2g.nn.conv.gcn import propagate as propagate
