"""H2G-former and its baselines on heterogeneous, heterophilic graphs (arXiv 2407.10916).

  python -m h2g.train --config configs/h2gb.py:celegans --workdir runs/celegans

A variant is a name, then options: `celegans`, `celegans,label=transmitter`, `celegans,model=mlp`,
`celegans,ablation=labels` (`relations`, `ffn`), `molecules=features`, `model=sgc,view=2hop`,
`model=mlp,embedding=metapath2vec` (`node2vec`, `transe`),
`tiny,dataset=worldcup`, `dataset=twitch,graph=DE` (every set and its options: configs/datasets.py).

  celegans   ten seeds, each with its own 60/20/20 split, trained together on the whole graph
  fast       three seeds, half the steps, views of at most 20 M edges: what the benchmark runs on
             many graphs
  sampled    the same graph through HGT sampling, batches padded to a handful of shapes; three seeds
  tiny       two seeds, a few steps: for a first look
  full       the published settings (width 256, 3 layers, 8 heads, HGT sampling); give an own graph:
             --config.data.path=graph.npz

Expect (2026-11-27, two CPU cores, mean test accuracy of ten seeds): role H2G-former 0.870, HGT
0.795, MLP 0.780, GCN 0.730; transmitter H2G-former 0.848. H2G-former takes about a minute, the
others less. `full` was not run: the nine published graphs are not at hand.
"""

from ml_collections import ConfigDict

from configs import common
from configs import datasets

NAMES = ("celegans", "fast", "sampled", "tiny", "full")
OPTIONS = {
  "model": "h2g_former",
  "dataset": "celegans",
  "ablation": "",
  "view": "",
  "embedding": "",
}
ABLATIONS = {
  "": {},
  "labels": {"label_embedding": False},
  "relations": {"key_weights": False},
  "ffn": {"typed_ffn": False},
}
# Settings chosen on the validation parts of role, ten seeds.
MODELS = {
  "h2g_former": {
    "dim": 64,
    "num_layers": 2,
    "num_heads": 8,
    "dropout_rate": 0.3,
    "input_dropout": 0.2,
    "edge_bias": True,
    "specialise": 8.0,
  },
  "mlp": {"dim": 64, "num_layers": 2, "dropout_rate": 0.5},
  "gcn": {"dim": 64, "num_layers": 2, "dropout_rate": 0.5},
  "hgt": {"dim": 64, "num_layers": 2, "num_heads": 8, "dropout_rate": 0.2},
  # The graph without its types; not tuned.
  "label_propagation": {"alpha": 0.1, "num_steps": 50},
  "sgc": {"dim": 64, "hops": 1},
  "graphsage": {"dim": 64, "num_layers": 2, "dropout_rate": 0.5},
  "gat": {"dim": 64, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.5},
  "gin": {"dim": 64, "num_layers": 2, "dropout_rate": 0.5},
  "appnp": {"dim": 64, "num_layers": 2, "num_steps": 2, "alpha": 0.1, "dropout_rate": 0.5},
  "nagphormer": {"dim": 64, "num_layers": 1, "num_heads": 8, "hops": 3, "dropout_rate": 0.2},
  "mixhop": {"dim": 32, "num_layers": 2, "dropout_rate": 0.5},
  "gpr_gnn": {"dim": 64, "num_layers": 2, "num_steps": 10, "alpha": 0.1, "dropout_rate": 0.5},
  "fagcn": {"dim": 64, "num_layers": 2, "eps": 0.3, "dropout_rate": 0.5},
  "acm_gcn": {"dim": 64, "num_layers": 2, "dropout_rate": 0.5},
  "h2gcn": {"dim": 64, "num_rounds": 1, "dropout_rate": 0.5},
  "linkx": {"dim": 64, "num_layers": 1, "dropout_rate": 0.5},
  "lsgnn": {"dim": 64, "num_layers": 2, "num_steps": 3, "dropout_rate": 0.5},
  "glognn": {"dim": 64, "dropout_rate": 0.5},
  # Relations told apart; not tuned.
  "rgcn": {"dim": 64, "num_layers": 2, "dropout_rate": 0.5},
  "rgraphsage": {"dim": 64, "num_layers": 2, "dropout_rate": 0.5},
  "rgat": {"dim": 64, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.5},
  "han": {"dim": 64, "num_layers": 2, "num_heads": 8, "dropout_rate": 0.5},
  "shgn": {"dim": 64, "num_layers": 2, "num_heads": 8, "dropout_rate": 0.5},
  "hinormer": {"dim": 64, "num_heads": 4, "fanouts": (4, 1), "dropout_rate": 0.2},
  # Transformers; not tuned.
  "polyformer": {"dim": 64, "num_layers": 2, "num_heads": 8, "hops": 3, "dropout_rate": 0.2},
  "gophormer": {
    "dim": 64,
    "num_layers": 1,
    "num_heads": 4,
    "fanouts": (4, 1),
    "num_global": 1,
    "num_samples": 2,
    "dropout_rate": 0.2,
  },
  "goat": {"dim": 64, "num_heads": 8, "num_centroids": 64, "decay": 0.9, "dropout_rate": 0.5},
  "graphtrans": {
    "dim": 64,
    "gnn_dim": 32,
    "num_gnn_layers": 2,
    "num_layers": 2,
    "num_heads": 4,
    "max_keys": 256,
    "dropout_rate": 0.2,
  },
}
# What most of the nine official settings of a model say (gpr_gnn and h2gcn have none: the papers').
PUBLISHED = {
  "h2g_former": {"dim": 256, "num_layers": 3, "num_heads": 8, "dropout_rate": 0.2},
  "mlp": {"dim": 256, "num_layers": 3, "dropout_rate": 0.2},
  "gcn": {"dim": 256, "num_layers": 3, "dropout_rate": 0.2},
  "hgt": {"dim": 256, "num_layers": 3, "num_heads": 8, "dropout_rate": 0.2},
  "label_propagation": {"alpha": 0.1, "num_steps": 50},
  "sgc": {"dim": 256, "hops": 1},
  "graphsage": {"dim": 256, "num_layers": 3, "dropout_rate": 0.2},
  "gat": {"dim": 256, "num_layers": 3, "num_heads": 8, "head_dim": 256, "dropout_rate": 0.2},
  "gin": {"dim": 256, "num_layers": 3, "dropout_rate": 0.2},
  "appnp": {"dim": 256, "num_layers": 3, "num_steps": 3, "alpha": 0.1, "dropout_rate": 0.2},
  "nagphormer": {"dim": 256, "num_layers": 3, "num_heads": 8, "hops": 6, "dropout_rate": 0.2},
  "mixhop": {"dim": 256, "num_layers": 3, "max_power": 2, "dropout_rate": 0.2},
  "gpr_gnn": {"dim": 256, "num_layers": 2, "num_steps": 10, "alpha": 0.1, "dropout_rate": 0.5},
  "fagcn": {"dim": 256, "num_layers": 3, "eps": 0.3, "dropout_rate": 0.2},
  "acm_gcn": {"dim": 256, "num_layers": 2, "dropout_rate": 0.5},
  "h2gcn": {"dim": 64, "num_rounds": 2, "dropout_rate": 0.5},
  "linkx": {"dim": 256, "num_layers": 1, "dropout_rate": 0.2},
  "lsgnn": {"dim": 256, "num_layers": 2, "num_steps": 5, "dropout_rate": 0.5},
  "glognn": {
    "dim": 64,
    "num_rounds": 1,
    "orders": 3,
    "dropout_rate": 0.2,
    "typed_input": True,  # its one published setting reads a map per type
  },
  "rgcn": {"dim": 256, "num_layers": 3, "dropout_rate": 0.2},
  "rgraphsage": {"dim": 256, "num_layers": 3, "dropout_rate": 0.2},
  "rgat": {"dim": 256, "num_layers": 3, "num_heads": 8, "head_dim": 256, "dropout_rate": 0.2},
  "han": {"dim": 256, "num_layers": 3, "num_heads": 8, "dropout_rate": 0.2},
  "shgn": {
    "dim": 64,
    "num_layers": 3,
    "num_heads": 8,
    "head_dim": 64,
    "dropout_rate": 0.2,
    "attention_dropout": 0.2,
  },
  "hinormer": {
    "dim": 64,
    "num_gnn_layers": 2,
    "num_layers": 1,  # the paper's transformer, which the official code leaves out
    "num_heads": 1,
    "fanouts": (5, 4),  # 26 tokens; the official sequences have 10 to 50
    "dropout_rate": 0.2,
  },
  "polyformer": {"dim": 256, "num_layers": 3, "num_heads": 8, "hops": 1, "dropout_rate": 0.2},
  "gophormer": {
    "dim": 256,
    "num_layers": 3,
    "num_heads": 8,
    "fanouts": (8, 4),  # ours: the official model reads samples instead of sequences
    "num_global": 2,
    "dropout_rate": 0.2,
    "attention_dropout": 0.2,
  },
  "goat": {
    "dim": 128,
    "num_heads": 8,
    "head_dim": 128,
    "num_centroids": 4096,
    "decay": 0.99,
    "dropout_rate": 0.2,
  },
  "graphtrans": {
    "dim": 256,
    "gnn_dim": 128,
    "num_gnn_layers": 3,
    "num_layers": 3,
    "num_heads": 8,
    "max_keys": 0,
    "dropout_rate": 0.2,
  },
}
# Peak learning rates, likewise; 5e-4 for the others.
PUBLISHED_LR = {
  "mlp": 1e-3,
  "gcn": 1e-3,
  "sgc": 1e-3,
  "graphsage": 1e-3,
  "gat": 1e-3,
  "gin": 1e-3,
  "appnp": 1e-3,
  "nagphormer": 1e-3,
  "mixhop": 1e-3,
  "gpr_gnn": 1e-3,
  "fagcn": 1e-3,
  "acm_gcn": 1e-3,
  "h2gcn": 1e-3,
  "linkx": 1e-3,
  "lsgnn": 1e-3,
  "glognn": 5e-3,
  "polyformer": 1e-3,
  "rgcn": 1e-3,
  "rgraphsage": 1e-3,
  "rgat": 1e-3,
  "han": 5e-4,
  "shgn": 5e-4,
  "hinormer": 1e-3,
}
# h2g_former on several devices: what reads the hidden rows is split by inputs over fsdp and by
# outputs over tensor, what writes them the other way round.
RULES = (
  (r"layers/\d+/(attention/qkv|ffn/up)/kernel", (None, "fsdp", "tensor")),
  (r"layers/\d+/(attention/out|ffn/down)/kernel", (None, "tensor", "fsdp")),
)
# Models that read another graph than the whole one, unless `view=` says which.
VIEWS = {"h2gcn": "strict_2hop"}
EMBEDDINGS = ("metapath2vec", "node2vec", "transe")
# What `python -m h2g.benchmark` runs: real graphs, and each model as one or more variants.
BENCHMARK = {
  "presets": ("fast", "celegans", "tiny", "full"),
  "datasets": (
    "celegans",
    "larval_connectome",
    "worldcup",
    "movielens",
    "imdb_nshe",
    "liar",
    "flavor",
    "twitch",
    "yelpchi_reviews",
    "heco_acm",
    "heco_aminer",
    "heco_freebase",
    "airports",
    "heterophilous_npz",
  ),
  "models": {
    **{name: f"model={name}" for name in MODELS if name not in ("label_propagation", "sgc")},
    "lp_1hop": "model=label_propagation,view=1hop",
    "lp_2hop": "model=label_propagation,view=2hop",
    "sgc_1hop": "model=sgc,view=1hop",
    "sgc_2hop": "model=sgc,view=2hop",
    **{f"mlp_{name}": f"model=mlp,embedding={name}" for name in EMBEDDINGS},
  },
  "published": "experiments/h2gb/published.csv",
  "more": datasets.PUBLISHED,  # the preset `full` suits these
}


def get_config(variant: str = "celegans") -> ConfigDict:
  """Values only; see the module's docstring for the variants."""
  chosen = dict.fromkeys(datasets.NAMES, "")
  name, options = common.parse_variant(variant, names=NAMES, options=OPTIONS | chosen)
  dataset = options["dataset"].replace("-", "_")
  chosen = datasets.options_of(dataset, {option: options[option] for option in chosen})
  common.require("model", options["model"], MODELS)
  common.require("ablation", options["ablation"], ABLATIONS)
  common.require("embedding", options["embedding"], ("", *EMBEDDINGS))
  if options["ablation"] and options["model"] != "h2g_former":
    raise ValueError(f"ablation={options['ablation']} needs model=h2g_former")

  config = common.trainer(
    steps=120,
    eval_every=5,
    checkpoint_every=40,
    steps_per_call=5,
    seeds_together=True,
    optimizer="adamw",
    schedule="cosine",
    lr=3e-3,
    warmup=10,
    weight_decay=1e-3,
    clip_norm=1.0,
  )
  config.experiment = "h2gb"
  config.sharding_rules = RULES if options["model"] == "h2g_former" else ()
  config.metric = datasets.METRICS.get(dataset, "accuracy")
  config.num_seeds = 10
  config.data = ConfigDict(
    {
      "name": dataset,
      "path": "",  # of an own graph (h2g.graph.save_npz), instead of the name
      "options": chosen,
      "reverses": True,
      "symmetric": (),  # relations that the data list in both directions
      "self_loops": False,
      "similar": 3,
      "degree_encoding": True,
      "spectral_encoding": 8,
      "laplacian_encoding": 0,
      "random_walk_encoding": 0,
      "embedding": options["embedding"],  # "metapath2vec", "node2vec" or "transe"
      "embedding_dim": 64,
      "virtual_nodes": 0,
      "split": (0.6, 0.2, 0.2),  # () takes the splits that came with the graph
      "view": options["view"] or VIEWS.get(options["model"], ""),
      "max_edges": 0,  # a view with more is refused; 0 allows what fits
    }
  )
  config.data.update(datasets.SETTINGS.get(dataset, {}))
  config.labels = ConfigDict({"mask_rate": 0.7, "own_label_visible": False, "smoothing": 0.1})
  config.sample = ConfigDict(
    {
      "method": "",  # "hgt" or "neighbor"; "" trains on the whole graph
      "fanouts": (64, 64),
      "batch_size": 32,
      "subgraphs": 2,  # per step; the loss is their mean
      "max_buckets": 3,
      "evaluate": "sampled",  # or "full", on the whole graph
      "eval_batches": 0,  # at most; 0 visits every validation and test node
      "workers": 0,  # processes that sample; 0 samples in threads of the trainer
      "device": False,  # the step draws its subgraphs itself; method "neighbor" only
      "shard_features": "",  # drawn on the device: mesh axis over which feature rows lie
    }
  )
  config.model = ConfigDict(
    {
      "name": options["model"],
      **(PUBLISHED if name == "full" else MODELS)[options["model"]],
      **ABLATIONS[options["ablation"]],
    }
  )

  if name == "fast":
    config.num_seeds = 3
    config.train.update(steps=60, eval_every=10, steps_per_call=10)
    config.data.max_edges = 20_000_000  # liar's 68 million do not end within minutes
  if name == "tiny":
    config.num_seeds = 2
    config.train.steps = 30
    config.train.checkpoint_every = 10
  if name in ("sampled", "full"):
    config.sample.method = "hgt"
    config.train.seeds_together = False
    config.train.steps_per_call = 1
    config.num_seeds = 3
  if name == "full":
    # 500 epochs of 256 batches, 32 of them a step; evaluated every 4 epochs on 256 batches.
    lr = PUBLISHED_LR.get(options["model"], 5e-4)
    config.train.update(
      steps=4000, eval_every=32, checkpoint_every=32, lr=lr, warmup=40, weight_decay=1e-5
    )
    config.sample.update(fanouts=(256,) * 4, batch_size=32, subgraphs=32, eval_batches=256)
    config.data.update(similar=0, degree_encoding=False, spectral_encoding=0, symmetric=())
    config.data.embedding_dim = 128
    config.labels.smoothing = 0.0
    if options["model"] == "h2g_former":
      config.model.update(datasets.H2G_FORMER.get(dataset, {}))
      config.train.lr = datasets.H2G_FORMER_LR.get(dataset, lr)
  if name in ("sampled", "full") and dataset in datasets.FANOUTS:
    with config.sample.ignore_type():  # one tuple, or one per node type
      config.sample.fanouts = datasets.FANOUTS[dataset]
    config.sample.subgraphs = datasets.SUBGRAPHS.get(dataset, config.sample.subgraphs)
  return config
