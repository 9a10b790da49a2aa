"""Heterogeneous graphs: the type, conversions, files, padding, sampling, measures, encodings."""

from h2g.graph.graph import EdgeSet as EdgeSet
from h2g.graph.graph import EdgeType as EdgeType
from h2g.graph.graph import HeteroGraph as HeteroGraph
from h2g.graph.graph import NodeSet as NodeSet
from h2g.graph.graph import Schema as Schema
from h2g.graph.io import load_npz as load_npz
from h2g.graph.io import save_npz as save_npz
