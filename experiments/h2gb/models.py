"""The models of the benchmark: slug -> constructor `(schema, **settings, rngs=...)`.

Each is called `model(graph, visible=, key=) -> target logits`. Their settings stand in
configs/h2gb.py.
"""

from h2g import models

MODELS = {
  "h2g_former": models.h2g_former,
  "mlp": models.MLP,
  "gcn": models.gcn,
  "hgt": models.HGT,
  # The graph without its types.
  "label_propagation": models.LabelPropagation,
  "sgc": models.SGC,
  "graphsage": models.graphsage,
  "gat": models.gat,
  "gin": models.gin,
  "appnp": models.APPNP,
  "nagphormer": models.NAGphormer,
  "mixhop": models.mixhop,
  "gpr_gnn": models.GPRGNN,
  "fagcn": models.FAGCN,
  "acm_gcn": models.acm_gcn,
  "h2gcn": models.H2GCN,
  "linkx": models.LINKX,
  "lsgnn": models.LSGNN,
  "glognn": models.GloGNN,
  # Relations told apart.
  "rgcn": models.rgcn,
  "rgraphsage": models.rgraphsage,
  "rgat": models.rgat,
  "han": models.han,
  "shgn": models.SHGN,
  "hinormer": models.HINormer,
  # Transformers.
  "polyformer": models.PolyFormer,
  "gophormer": models.Gophormer,
  "goat": models.GOAT,
  "graphtrans": models.graphtrans,
}
