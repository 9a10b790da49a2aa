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

from h2g import data
from h2g.errors import InputError

HELP = ("--help", "-help", "-h", "-?")
NAMES = (
  "ogbn_mag", "mag_year", "oag_cs", "oag_eng", "oag_chem", "rcdd", "ieee_cis", "h_pokec", "pdns",
)  # fmt: skip


def main(argv: list[str]) -> int:
  """Runs the command line; returns its exit status."""
  if any(word in HELP for word in argv[1:]):
    print(__doc__.strip())
    return 0
  values = flags.FlagValues()
  place = flags.DEFINE_string("data_dir", "", "", flag_values=values)
  try:
    words = values(argv)[1:]
  except flags.Error as error:
    return _fail(f"{error}; --help lists what there is")
  if len(words) != 1 or words[0].replace("-", "_") not in NAMES:
    return _fail(f"give one name of {', '.join(NAMES)}; --help says more")
  try:
    graph = data.load(words[0], data_dir=place.value)
  except InputError as error:
    return _fail(str(error))
  print(graph.summary())
  for name, mask in graph.splits.items():
    print(f"{name}: {int(mask.sum())} {graph.schema.target}")
  return 0


def _fail(message: str) -> int:
  print(f"error: {message}", file=sys.stderr)
  return 2


if __name__ == "__main__":
  sys.exit(main(sys.argv))
