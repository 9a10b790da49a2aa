"""The flavour network: ingredients, the compounds they contain, and which go together in recipes.

Two relations of opposite kind: sharing a compound says little about the category, the backbone link
much. Names and the category column of the backbone betray the label and are left out.

Source: lingcheng99/Flavor-Network; Ahn et al., Scientific Reports 1:196 (2011). Licence:
repository GPL-3.0, the article's supplement non-commercial.
"""

from pathlib import Path

import numpy as np

from h2g.data import files as shared
from h2g.data.checksums import SHA256
from h2g.graph import HeteroGraph


def load(*, files: str | Path | None = None, digests=SHA256["flavor"]) -> HeteroGraph:
  """Ingredients 1,530 (labelled, 14 categories) and compounds 1,107; `contains` and `backbone`.

  The edge feature of backbone is log(1 + number of shared compounds); each link is listed as the
  table does.

  Args:
    files, digests: as in `imdb_nshe.load`.
  """
  source = shared.Source("flavor", digests, files)
  place = source.folder
  ingredients = source.table(
    "ingr_info.tsv", ("id", "ingredient name", "category"), delimiter="\t", quoting=False
  )
  compounds = source.table("comp_info.tsv", ("id",), delimiter="\t", quoting=False)
  contains = source.table("ingr_comp.tsv", ("ingredient id", "compound id"), delimiter="\t")
  backbone = source.table("backbone.csv", ("0", "1", "2"))
  rows = {
    "ingredient": shared.number(ingredients["id"], path=place / "ingr_info.tsv"),
    "compound": shared.number(compounds["id"], path=place / "comp_info.tsv"),
    "name": shared.number(ingredients["ingredient name"], path=place / "ingr_info.tsv"),
  }
  names = tuple(sorted(set(ingredients["category"])))
  ends = lambda table, file, columns: tuple(
    shared.lookup(rows[kind], table[column], path=place / file, column=column, what=kind)
    for column, kind in columns
  )
  weight = shared.numbers(backbone["2"], path=place / "backbone.csv", column="2")
  return HeteroGraph.from_arrays(
    nodes={
      "ingredient": {"labels": np.array([names.index(c) for c in ingredients["category"]])},
      "compound": {"num_nodes": len(compounds["id"])},
    },
    edges={
      ("ingredient", "contains", "compound"): ends(
        contains,
        "ingr_comp.tsv",
        (("ingredient id", "ingredient"), ("compound id", "compound")),
      ),
      ("ingredient", "backbone", "ingredient"): (
        *ends(backbone, "backbone.csv", (("0", "name"), ("1", "name"))),
        np.log1p(weight),
      ),
    },
    target="ingredient",
    class_names=names,
  )
