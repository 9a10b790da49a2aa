"""Football World Cups, men 1930 to 2022 and women 1991 to 2019: eleven node types.

A squad needs every position, so most relations are heterophilic; only who replaces whom is not. The
label stands in the players' position columns and in the squads' position and shirt number: none of
them is a feature.

Source: jfjelstul/worldcup, "The Fjelstul World Cup Database", (c) 2023 Joshua C. Fjelstul, Ph.D.
Licence: CC BY-SA 4.0.
"""

from collections import Counter
from collections import defaultdict
from pathlib import Path

import numpy as np

from h2g.data import encode
from h2g.data import files as shared
from h2g.data.checksums import SHA256
from h2g.errors import InputError
from h2g.graph import HeteroGraph

POSITIONS = {"GK": "goalkeeper", "DF": "defender", "MF": "midfielder", "FW": "forward"}
# {node type: (table, id column)}; squads and stages have ids of two columns.
NODES = {
  "player": ("players", ("player_id",)),
  "squad": ("squads", ("tournament_id", "team_id")),
  "team": ("teams", ("team_id",)),
  "tournament": ("tournaments", ("tournament_id",)),
  "stage": ("tournament_stages", ("tournament_id", "stage_name")),
  "match": ("matches", ("match_id",)),
  "stadium": ("stadiums", ("stadium_id",)),
  "manager": ("managers", ("manager_id",)),
  "referee": ("referees", ("referee_id",)),
  "confederation": ("confederations", ("confederation_id",)),
  "award": ("awards", ("award_id",)),
}
# {edge type: (table, edge features, condition)}; both ends are read from their id columns.
EDGES = {
  ("player", "in", "squad"): ("squads", ()),
  ("squad", "of", "team"): ("squads", ()),
  ("squad", "at", "tournament"): ("squads", ()),
  ("player", "scored_in", "match"): ("goals", ("minute_regulation", "own_goal", "penalty")),
  ("player", "booked_in", "match"): ("bookings", ("minute_regulation", "yellow_card", "red_card")),
  ("player", "went_off_in", "match"): ("substitutions", ("minute_regulation",)),
  ("player", "came_on_in", "match"): ("substitutions", ("minute_regulation",)),
  ("player", "kicked_penalty_in", "match"): ("penalty_kicks", ("converted",)),
  ("player", "won", "award"): ("award_winners", ()),
  ("team", "played", "match"): ("team_appearances", ("goals_for", "goals_against")),
  ("manager", "led_in", "match"): ("manager_appearances", ()),
  ("manager", "led", "team"): ("manager_appearances", ()),
  ("referee", "judged", "match"): ("referee_appearances", ()),
  ("match", "held_in", "stadium"): ("matches", ()),
  ("match", "part_of", "stage"): ("matches", ()),
  ("stage", "part_of", "tournament"): ("tournament_stages", ()),
  ("team", "member_of", "confederation"): ("teams", ()),
  ("referee", "member_of", "confederation"): ("referees", ()),
}
WHERE = {"went_off_in": "going_off", "came_on_in": "coming_on"}
ONCE = {("squad", "of"), ("squad", "at"), ("manager", "led")}  # one edge however many rows


def load(*, files: str | Path | None = None, digests=SHA256["worldcup"]) -> HeteroGraph:
  """Players (10,401; label: the position they had most often, ties by code) and all around them.

  Features: players' year of birth, age at their first World Cup, sex and number of World Cups;
  years, capacities, goals and flags elsewhere. Minutes are divided by 90.

  Args:
    files, digests: as in `imdb_nshe.load`.
  """
  tables = _Tables(shared.Source("worldcup", digests, files))
  rows = {kind: tables.rows(kind) for kind in NODES}
  squads = tables("squads")
  held = defaultdict(Counter)
  for at, (player, code) in enumerate(zip(squads["player_id"], squads["position_code"])):
    if code not in POSITIONS:
      raise InputError(f"{tables.path('squads')} row {at + 1}: unknown position_code {code!r}")
    held[player][code] += 1
  codes = tuple(POSITIONS)
  labels = np.full(len(rows["player"]), -1)
  for player, row in rows["player"].items():
    if player in held:
      most = max(held[player].values())
      labels[row] = codes.index(min(code for code, n in held[player].items() if n == most))

  nodes = {kind: {"num_nodes": len(found)} for kind, found in rows.items()}
  for kind, columns in _features(tables).items():
    nodes[kind]["features"] = np.concatenate(columns, axis=1)
  nodes["player"]["labels"] = labels
  edges = {name: _edges(name, tables, rows) for name in EDGES}
  edges["player", "replaced_by", "player"] = _replacements(tables, rows["player"])
  return HeteroGraph.from_arrays(
    nodes=nodes, edges=edges, target="player", class_names=tuple(POSITIONS.values())
  )


class _Tables:
  """The tables, each read once."""

  def __init__(self, source: shared.Source):
    self._source, self._read = source, {}

  def path(self, name: str) -> Path:
    return self._source.folder / f"data-csv/{name}.csv"

  def __call__(self, name: str) -> dict[str, list[str]]:
    if name not in self._read:
      self._read[name] = self._source.table(f"data-csv/{name}.csv", ())
    return self._read[name]

  def column(self, name: str, column: str) -> list[str]:
    if column not in self(name):
      raise InputError(f"{self.path(name)}: column {column!r} is missing")
    return self(name)[column]

  def numbers(self, name: str, column: str) -> np.ndarray:
    values = self.column(name, column)
    missing = ("", "not available", "not applicable")
    return shared.numbers(values, path=self.path(name), column=column, missing=missing)

  def ids(self, kind: str, name: str) -> list[str]:
    """Ids of the nodes of a type, as a table writes them."""
    ids = ["/".join(found) for found in zip(*(self.column(name, c) for c in NODES[kind][1]))]
    return (
      [found.removesuffix("s") for found in ids] if kind == "stage" else ids
    )  # quarter-final(s)

  def rows(self, kind: str) -> dict[str, int]:
    name, columns = NODES[kind]
    ids = self.ids(kind, name)
    ids = dict.fromkeys(ids) if kind == "squad" else ids  # one row a player there
    return shared.number(ids, path=self.path(name), column="/".join(columns))


def _features(tables: _Tables) -> dict[str, list[np.ndarray]]:
  """{node type: blocks [N, F]}."""
  flag = lambda name, column: np.nan_to_num(tables.numbers(name, column))[:, None]
  born = np.array(
    [float(d[:4]) if d[:4].isdecimal() else np.nan for d in tables.column("players", "birth_date")]
  )
  first = np.array(
    [float(found.split(",")[0]) for found in tables.column("players", "list_tournaments")]
  )
  cups = tables.numbers("players", "count_tournaments")
  goals = [tables.numbers("matches", f"{side}_team_score") for side in ("home", "away")]
  stages = ("group_stage", "knockout_stage")
  return {
    "player": [encode.numeric(born, first - born, cups), flag("players", "female")],
    "team": [flag("teams", f"{who}s_team") for who in ("men", "women")],
    "tournament": [
      encode.numeric(*(tables.numbers("tournaments", c) for c in ("year", "count_teams")))
    ],
    "stage": [flag("tournament_stages", column) for column in stages],
    "match": [encode.numeric(*goals), *(flag("matches", column) for column in stages)],
    "stadium": [encode.numeric(tables.numbers("stadiums", "stadium_capacity"), log=True)],
    "manager": [flag("managers", "female")],
    "referee": [flag("referees", "female")],
  }


def _edges(name, tables: _Tables, rows):
  """(senders, receivers[, features]) of one relation from its table."""
  source, relation, target = name
  table, columns = EDGES[name]
  keep = np.ones(len(tables.ids(source, table)), bool)
  if relation in WHERE:
    keep = tables.numbers(table, WHERE[relation]) > 0
  ends = [
    shared.lookup(
      rows[kind], tables.ids(kind, table), path=tables.path(table), column=kind, what=kind
    )[keep]
    for kind in (source, target)
  ]
  if (source, relation) in ONCE:
    return np.unique(np.stack(ends), axis=1)
  if not columns:
    return np.stack(ends)
  x = np.stack([tables.numbers(table, column)[keep] for column in columns], axis=1)
  x[:, [column == "minute_regulation" for column in columns]] /= 90
  return (*ends, x)


def _replacements(tables: _Tables, players) -> np.ndarray:
  """[2, E]: who went off, who came on, of one team in the same minute of a match."""
  changes = tables("substitutions")
  keys = zip(changes["match_id"], changes["team_id"], changes["minute_label"])
  moments = defaultdict(lambda: ([], []))
  ids = shared.lookup(
    players, changes["player_id"], path=tables.path("substitutions"), column="player_id"
  )
  for key, player, off in zip(keys, ids, changes["going_off"]):
    moments[key][off != "1"].append(player)
  pairs = [(a, b) for off, on in moments.values() for a in off for b in on]
  return np.array(pairs, np.int64).reshape(-1, 2).T
