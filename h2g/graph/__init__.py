"""Heterogeneous graphs: the type, conversions, files, padding, sampling, measures, encodings."""

from h2g.graph.convert import from_jraph as from_jraph
from h2g.graph.convert import from_networkx as from_networkx
from h2g.graph.convert import from_pyg as from_pyg
from h2g.graph.convert import to_jraph as to_jraph
from h2g.graph.convert import to_networkx as to_networkx
from h2g.graph.convert import to_pyg as to_pyg
from h2g.graph.graph import EdgeSet as EdgeSet
from h2g.graph.graph import EdgeType as EdgeType
from h2g.graph.graph import HeteroGraph as HeteroGraph
from h2g.graph.graph import NodeSet as NodeSet
from h2g.graph.graph import Schema as Schema
from h2g.graph.homophily import metapath_homophily as metapath_homophily
from h2g.graph.homophily import metapaths as metapaths
from h2g.graph.homophily import relation_homophily as relation_homophily
from h2g.graph.io import load_npz as load_npz
from h2g.graph.io import save_npz as save_npz
from h2g.graph.padding import Bucket as Bucket
from h2g.graph.padding import bucket_ladder as bucket_ladder
from h2g.graph.padding import choose_bucket as choose_bucket
from h2g.graph.padding import pad as pad
from h2g.graph.padding import pad_to as pad_to
from h2g.graph.padding import padded_share as padded_share
from h2g.graph.sampler import hgt_sample as hgt_sample
from h2g.graph.sampler import neighbor_sample as neighbor_sample
from h2g.graph.sampler import Sampler as Sampler
from h2g.graph.views import view as view
