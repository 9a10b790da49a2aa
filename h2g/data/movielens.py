"""MovieLens-100k: users, movies and ratings; predict a user's gender or age band.

Read from the Python package `recbole`, which ships the files; its terms forbid redistribution.

Source: GroupLens (ACM TiiS 5, 2015); the Freebase links KB4Rec (arXiv 1807.11141).
"""

from importlib import metadata
from pathlib import Path

import numpy as np

from h2g.data import encode
from h2g.data import files as shared
from h2g.data.checksums import SHA256
from h2g.errors import InputError
from h2g.graph import HeteroGraph

INSTALL = "pip install --no-deps recbole==1.2.1"
FOLDER = "recbole/dataset_example/ml-100k"
AGES = (25, 35, 45)  # where the next band begins
LABELS = {"gender": ("F", "M"), "age": ("under 25", "25 to 34", "35 to 44", "45 and over")}


def load(
  label: str = "gender",
  *,
  knowledge: bool = False,
  files: str | Path | None = None,
  digests=SHA256["ml-100k"],
) -> HeteroGraph:
  """Users (943, labelled), movies (1,682) and 100,000 ratings.

  User features: age (or gender, where age is the label), occupation, first digit of the postcode.
  Movie features: genres and year. The edge feature is (rating - 3) / 2; times are not read.

  Args:
    label: "gender" or "age" (four bands).
    knowledge: add the Freebase triples as relations between movies and a node type `entity`.
    files: folder of the ml-100k files; by default that of the installed package.
    digests: as in `imdb_nshe.load`.
  Raises:
    InputError: the package is not installed, or its files have changed.
  """
  shared.choose("movielens", label=(label, tuple(LABELS)))
  source = shared.Source("ml-100k", digests, _folder() if files is None else files)
  table = lambda kind, names: source.table(f"ml-100k.{kind}", names, delimiter="\t", quoting=False)
  path = lambda kind: source.folder / f"ml-100k.{kind}"
  users = table(
    "user",
    ("user_id:token", "age:token", "gender:token", "occupation:token", "zip_code:token"),
  )
  movies = table("item", ("item_id:token", "release_year:token", "class:token_seq"))
  ratings = table("inter", ("user_id:token", "item_id:token", "rating:float"))
  rows = {
    "user": shared.number(users["user_id:token"], path=path("user"), column="user_id"),
    "movie": shared.number(movies["item_id:token"], path=path("item"), column="item_id"),
  }
  age = shared.numbers(users["age:token"], path=path("user"), column="age")
  gender = users["gender:token"]
  if strange := set(gender) - set(LABELS["gender"]):
    raise InputError(f"{path('user')}: gender {sorted(strange)[0]!r} is neither F nor M")
  if label == "gender":
    labels, own = np.array([LABELS[label].index(value) for value in gender]), encode.numeric(age)
  else:
    labels, own = np.digitize(age, AGES), encode.one_hot(gender)
  digit = [code[:1] if code[:1].isdecimal() else "other" for code in users["zip_code:token"]]
  year = [value if value.isdecimal() else "" for value in movies["release_year:token"]]
  year = shared.numbers(year, path=path("item"), column="release_year", missing=("",))
  genres = [set(value.split()) for value in movies["class:token_seq"]]
  kinds = sorted(set().union(*genres))
  multi_hot = np.array([[kind in found for kind in kinds] for found in genres], np.float32)
  score = shared.numbers(ratings["rating:float"], path=path("inter"), column="rating")
  ends = [
    shared.lookup(rows[kind], ratings[f"{column}:token"], path=path("inter"), column=column)
    for kind, column in (("user", "user_id"), ("movie", "item_id"))
  ]
  nodes = {
    "user": {
      "features": np.concatenate(
        [own, encode.one_hot(users["occupation:token"]), encode.one_hot(digit)], axis=1
      ),
      "labels": labels,
    },
    "movie": {"features": np.concatenate([multi_hot, encode.numeric(year)], axis=1)},
  }
  edges = {("user", "rated", "movie"): (*ends, (score - 3) / 2)}
  if knowledge:
    count, found = _knowledge(table, path, rows["movie"])
    nodes["entity"] = {"num_nodes": count}
    edges |= found
  return HeteroGraph.from_arrays(nodes=nodes, edges=edges, target="user", class_names=LABELS[label])


def _folder() -> Path:
  try:
    return Path(metadata.distribution("recbole").locate_file(FOLDER))
  except metadata.PackageNotFoundError as error:
    raise InputError(
      f"MovieLens-100k comes with the package recbole, which is not installed: {INSTALL} (its "
      "dependencies are not needed)"
    ) from error


def _knowledge(table, path, movies):
  """(number of entities, {edge type: [2, E]}) of the Freebase triples."""
  link = table("link", ("item_id:token", "entity_id:token"))
  place = {
    entity: ("movie", row)
    for entity, row in zip(
      link["entity_id:token"],
      shared.lookup(movies, link["item_id:token"], path=path("link"), column="item_id"),
    )
  }
  triples = table("kg", ("head_id:token", "relation_id:token", "tail_id:token"))
  count, edges = 0, {}
  for head, relation, tail in zip(*triples.values()):
    for entity in (head, tail):
      if entity not in place:
        place[entity] = ("entity", count)
        count += 1
    (source, u), (target, v) = place[head], place[tail]
    edges.setdefault((source, relation, target), []).append((u, v))
  return count, {name: np.array(pairs).T for name, pairs in sorted(edges.items())}
