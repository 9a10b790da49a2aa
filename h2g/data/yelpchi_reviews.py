"""YelpChi: hotel and restaurant reviews of Chicago, some of them spam.

The user relation is nearly pure and the product relation heterophilic: whoever knows which to trust
wins. Score by macro-F1 or ROC AUC: 87 % are genuine.

Source: safe-graph/UGFraud (ids and labels only; KDD 2015). Licence: Apache-2.0 (repository).
"""

import gzip
from pathlib import Path

import numpy as np

from h2g.data import files as shared
from h2g.data.checksums import SHA256
from h2g.errors import InputError
from h2g.graph import HeteroGraph

LABELS = ("review", "user")


def load(
  label: str = "review",
  *,
  split_seed: int = 0,
  files: str | Path | None = None,
  digests=SHA256["yelpchi-reviews"],
) -> HeteroGraph:
  """Reviews, users and products; all featureless, and genuine (0) or spam (1).

  Args:
    label: "review" (67,395, 13.2 % spam): review `by` user, review `about` product. "user" (38,063,
      20.3 % with a spam review): user `reviewed` product, without the reviews.
    split_seed: of `splits` train, val, test (60/20/20 of the users), the strict ones: no user has
      reviews in two of them.
    files, digests: as in `imdb_nshe.load`.
  """
  shared.choose("yelpchi_reviews", label=(label, LABELS))
  source = shared.Source("yelpchi-reviews", digests, files)
  path = source.folder / "metadata.gz"
  try:
    content = gzip.decompress(source.read("metadata.gz"))
  except shared.DAMAGED as error:
    if isinstance(error, InputError):
      raise
    raise InputError(f"{path} is no whole .gz file ({error}): fetch it again") from error
  table = shared.parse_table(
    shared.decode(content, path),
    ("user", "product", "", "label", ""),
    path=path,
    delimiter=" ",
    header=False,
  )
  if strange := set(table["label"]) - {"1", "-1"}:
    raise InputError(f"{path}: label {sorted(strange)[0]!r} is neither 1 (genuine) nor -1 (spam)")
  spam = np.array([value == "-1" for value in table["label"]])
  user_names, users = np.unique(table["user"], return_inverse=True)
  product_names, products = np.unique(table["product"], return_inverse=True)
  part = np.digitize(
    np.random.default_rng(split_seed).permutation(len(user_names)) / len(user_names), (0.6, 0.8)
  )
  if label == "user":
    spammer = np.zeros(len(user_names), bool)
    spammer[users[spam]] = True
    labels, owner = spammer, np.arange(len(user_names))
    nodes = {"user": {}, "product": {"num_nodes": len(product_names)}}
    edges = {("user", "reviewed", "product"): (users, products)}
  else:
    labels, owner, rows = spam, users, np.arange(len(spam))
    nodes = {
      "review": {},
      "user": {"num_nodes": len(user_names)},
      "product": {"num_nodes": len(product_names)},
    }
    edges = {
      ("review", "by", "user"): (rows, users),
      ("review", "about", "product"): (rows, products),
    }
  nodes[label]["labels"] = labels.astype(np.int64)
  return HeteroGraph.from_arrays(
    nodes=nodes,
    edges=edges,
    target=label,
    class_names=("genuine", "spam"),
    splits={name: part[owner] == k for k, name in enumerate(("train", "val", "test"))},
  )
