"""H-Pokec: a Slovak social network; users by the gender they report.

1,632,803 users who name each other as friends and list clubs of fifteen kinds. A user has 66
features: public, completion and age (standardised; age 0 is taken as 23), the main area of the
region one-hot, and for each of 51 free texts whether it is filled. Friendship holds both
directions, each pair once; `lists` has a reverse. Random split 50/25/25. Accuracy.

Source: SNAP, `soc-pokec-profiles.txt.gz` and `soc-pokec-relationships.txt.gz`; H2GB (arXiv
2407.10916) reads them as here, but numbers clubs and splits users anew in every conversion.
"""

import re

import numpy as np

from h2g.data import encode
from h2g.data import published
from h2g.data import store
from h2g.errors import InputError
from h2g.graph import HeteroGraph

PROFILES, FRIENDS = "soc-pokec-profiles.txt.gz", "soc-pokec-relationships.txt.gz"
URL = "https://snap.stanford.edu/data/"
CLUBS = (
  "life_style", "music", "cars", "politics", "relationships", "art_culture", "hobbies_interests",
  "science_technologies", "computers_internet", "education", "sport", "movies", "travelling",
  "health", "companies_brands",
)  # fmt: skip
# Columns: user_id, public, completion_percentage, gender, region, last_login, registration, AGE,
# 51 free texts (from `body` on, the clubs and `more` last), and nothing behind the last tab.
FIRST_TEXT, NUM_TEXTS, FIRST_CLUB = 8, 51, 43
FIELDS = FIRST_TEXT + NUM_TEXTS
HREF = re.compile(rb'href="/klub/([^"]+)"')
CHUNK = 1 << 16


def load(*, data_dir: str = "", split_seed: int = 0) -> HeteroGraph:
  """Users and fifteen types of clubs.

  Args:
    data_dir: folder of the two files, where the converted `h-pokec.store` is kept, too; "" for
      `h-pokec` under H2G_DATA. What is missing is downloaded.
    split_seed: of the split.
  """
  urls = {name: URL + name for name in (PROFILES, FRIENDS)}
  files = published.Files("h-pokec", data_dir, names=(PROFILES, FRIENDS), urls=urls)
  names, facts = ("female", "male"), {"source": list(urls.values())}
  place = published.opened(
    files, "h-pokec", _convert, target="user", class_names=names, facts=facts
  )
  graph = store.load(place)
  rows = np.flatnonzero(graph.target_labels >= 0)
  parts = published.cut(rows, split_seed, train=0.5, val=0.25, test=0.25)
  return published.with_split(graph, parts.items())


def _convert(files, out) -> None:
  where, users = files.where(PROFILES), _Users()
  with files.open(PROFILES) as file:
    for line, content in published.blocks(file):
      users.read(content.split(b"\n"), where, line)
  ids = np.array(users.ids, np.int64)
  if not len(ids):
    raise InputError(f"{where} is empty")
  order = np.argsort(ids, kind="stable")
  ids = ids[order]
  twice = np.flatnonzero(ids[1:] == ids[:-1])
  if len(twice):
    raise InputError(f"{where}: user {ids[twice[0]]} stands twice; every user has one row")
  numeric = [np.array(column, np.float64)[order] for column in users.numbers]
  numeric[2][numeric[2] == 0] = 23
  numeric = np.stack([_standardised(np.nan_to_num(column)) for column in numeric], axis=1)
  areas = [users.areas[at] for at in order]
  names = sorted(set(areas))
  texts = np.concatenate(users.texts)[order]
  for begin in range(0, len(ids), CHUNK):
    end = begin + CHUNK
    area = encode.one_hot(areas[begin:end], names)
    out.features("user", np.concatenate([numeric[begin:end], area, texts[begin:end]], axis=1))
  out.labels(np.array(users.genders, np.int32)[order])
  row_of = np.empty(len(ids), np.int64)
  row_of[order] = np.arange(len(ids))
  for name, clubs, members in zip(CLUBS, users.clubs, users.members):
    out.num_nodes(name, len(clubs))
    pairs = np.array(members, np.int64).reshape(-1, 2)
    out.edges(("user", "lists", name), row_of[pairs[:, 0]], pairs[:, 1])
  where = files.where(FRIENDS)
  for pairs in published.numbers(files, FRIENDS, np.int64, columns=2, delimiter="\t"):
    rows = np.searchsorted(ids, pairs)
    bad = np.flatnonzero((ids[np.minimum(rows, len(ids) - 1)] != pairs).any(axis=1))
    if len(bad):
      raise InputError(f"{where}: {pairs[bad[0]].tolist()} names a user who is not in {PROFILES}")
    out.symmetric_edges(("user", "has_friend", "user"), rows[:, 0], rows[:, 1])


class _Users:
  """Columns of the profiles, in the order of the file."""

  def __init__(self):
    self.ids, self.genders, self.areas, self.texts = [], [], [], []
    self.numbers = [], [], []
    self.clubs, self.members = [{} for _ in CLUBS], [[] for _ in CLUBS]

  def read(self, lines, where: str, line: int) -> None:
    texts = []
    for at, text in enumerate(lines):
      if not text.strip():
        continue
      fields = text.rstrip(b"\r").split(b"\t")
      if not fields[-1]:  # behind the last tab
        fields.pop()
      try:
        if len(fields) != FIELDS:
          raise ValueError(f"{len(fields)} fields, {FIELDS} are expected")
        gender = -1 if fields[3] in (b"null", b"") else int(float(fields[3]))
        if gender not in (-1, 0, 1):
          raise ValueError(f"gender {gender}")
        self.ids.append(int(fields[0]))
        for column, place in zip(self.numbers, (1, 2, 7)):
          column.append(np.nan if fields[place] in (b"null", b"") else float(fields[place]))
      except ValueError as error:
        raise InputError(
          f"{where} line {line + at}: {error}; the file is truncated or not the published table"
        ) from error
      self.genders.append(gender)
      area = fields[4].split(b",")[0].strip()
      self.areas.append("null" if area in (b"null", b"") else area.decode("utf-8", "replace"))
      texts.append([field not in (b"null", b"") for field in fields[FIRST_TEXT:]])
      for known, members, field in zip(self.clubs, self.members, fields[FIRST_CLUB:]):
        for club in HREF.findall(field) if field != b"null" else ():
          members.append((len(self.ids) - 1, known.setdefault(club, len(known))))
    self.texts.append(np.array(texts, bool).reshape(-1, NUM_TEXTS))


def _standardised(column: np.ndarray) -> np.ndarray:
  return (column - column.mean()) / (column.std() + 1e-9)
