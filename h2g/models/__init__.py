"""Whole networks. Those for graphs share one call: model(graph, visible=, key=) -> target
logits."""

from h2g.models.appnp import APPNP as APPNP
from h2g.models.fagcn import FAGCN as FAGCN
from h2g.models.glognn import GloGNN as GloGNN
from h2g.models.goat import GOAT as GOAT
from h2g.models.gophormer import Gophormer as Gophormer
from h2g.models.gpr_gnn import GPRGNN as GPRGNN
from h2g.models.graphtrans import graphtrans as graphtrans
from h2g.models.h2gcn import H2GCN as H2GCN
from h2g.models.hgt import HGT as HGT
from h2g.models.hinormer import HINormer as HINormer
from h2g.models.homogeneous import acm_gcn as acm_gcn
from h2g.models.homogeneous import gat as gat
from h2g.models.homogeneous import gcn as gcn
from h2g.models.homogeneous import gin as gin
from h2g.models.homogeneous import graphsage as graphsage
from h2g.models.homogeneous import Homogeneous as Homogeneous
from h2g.models.homogeneous import mixhop as mixhop
from h2g.models.label_propagation import LabelPropagation as LabelPropagation
from h2g.models.linkx import LINKX as LINKX
from h2g.models.lsgnn import LSGNN as LSGNN
from h2g.models.mlp import MLP as MLP
from h2g.models.nagphormer import NAGphormer as NAGphormer
from h2g.models.polyformer import PolyFormer as PolyFormer
from h2g.models.relational import han as han
from h2g.models.relational import rgat as rgat
from h2g.models.relational import rgcn as rgcn
from h2g.models.relational import rgraphsage as rgraphsage
from h2g.models.sgc import SGC as SGC
from h2g.models.shgn import SHGN as SHGN
from h2g.models.unified_gt import h2g_former as h2g_former
from h2g.models.unified_gt import UnifiedGT as UnifiedGT
