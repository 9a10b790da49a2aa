"""Graph operators: one layer each, without its norm and activation.

An operator is called `conv(h [N, G], graph, *, key=None) -> [N, G']` and says its width G' as
`out_dim`. Its constructor takes the width it reads first: `Conv(in_dim, ..., rngs=...)`.
"""

from h2g.nn.conv.acm import ACMConv as ACMConv
from h2g.nn.conv.adjacency import AdjacencyMap as AdjacencyMap
from h2g.nn.conv.fa import FAConv as FAConv
from h2g.nn.conv.gat import edge_scores as edge_scores
from h2g.nn.conv.gat import GATConv as GATConv
from h2g.nn.conv.gcn import GCNConv as GCNConv
from h2g.nn.conv.gcn import propagate as propagate
from h2g.nn.conv.gin import GINConv as GINConv
from h2g.nn.conv.han import HANConv as HANConv
from h2g.nn.conv.mixhop import MixHopConv as MixHopConv
from h2g.nn.conv.rgat import RGATConv as RGATConv
from h2g.nn.conv.rgcn import RGCNConv as RGCNConv
from h2g.nn.conv.sage import SAGEConv as SAGEConv
from h2g.nn.conv.shgn import SHGNConv as SHGNConv
