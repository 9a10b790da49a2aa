"""Get a published H2GB graph and convert it, once, to the store that is opened from then on.

  python -m h2g.data.convert NAME [--data_dir DIR]

  NAME        ogbn_mag, mag_year, oag_cs, oag_eng, oag_chem, rcdd, ieee_cis, h_pokec or pdns
  --data_dir  folder of the raw files at hand; what is missing there is downloaded into it (an
              interrupted download goes on), and the store is written there. Without it, the set's
              folder under H2G_DATA.
  --help      this text

Prints a summary of the graph. Status 2: a file cannot be had, or is not the published one; the
message says which, and where to put it by hand.
"""

import sys

from absl import flags

from h2g import commands
from h2g import data
from h2g.errors import InputError

NAMES = (
  "ogbn_mag", "mag_year", "oag_cs", "oag_eng", "oag_chem", "rcdd", "ieee_cis", "h_pokec", "pdns",
)  # fmt: skip


def main(argv: list[str]) -> int:
  """Runs the command line; returns its exit status."""
  return commands.run(_main, argv, __doc__)


def _main(argv: list[str]) -> int:
  values = flags.FlagValues()
  place = flags.DEFINE_string("data_dir", "", "", flag_values=values)
  words = commands.words(values, argv, most=1)
  if not words or words[0].replace("-", "_") not in NAMES:
    raise InputError(f"give one name of {', '.join(NAMES)}; --help says more")
  graph = data.load(words[0], data_dir=place.value)
  print(graph.summary())
  for name, mask in graph.splits.items():
    print(f"{name}: {int(mask.sum())} {graph.schema.target}")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv))
