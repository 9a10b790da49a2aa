"""What command lines share: help from the module's own text, errors in one line, exit status."""

from collections.abc import Callable
import sys

from absl import flags

from h2g.errors import InputError

HELP = ("--help", "-help", "-h", "-?")


def asks_help(argv: list[str]) -> bool:
  """Whether a word of the command line asks for help."""
  return any(word in HELP for word in argv[1:])


def run(body: Callable[[list[str]], int], argv: list[str], text: str | None = None) -> int:
  """body(argv), an exit status; 2 and one line for an InputError, 130 for Ctrl-C.

  Args:
    body: what the command does.
    argv: the command line, its first word the program.
    text: printed instead where --help stands in the line; None leaves that to `body`.
  """
  if text is not None and asks_help(argv):
    print(text.strip())
    return 0
  try:
    return body(argv)
  except InputError as error:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("stopped; run the same command to go on", file=sys.stderr)
    return 130


def words(values: flags.FlagValues, argv: list[str], most: int = 0) -> list[str]:
  """Reads the flags of a command line into `values` and returns its other words.

  Args:
    values: with its flags defined; absl's global ones stay as they are, so that a command can be
      called again in the same process.
    argv: the command line.
    most: words that may be left.
  Raises:
    InputError: a flag or a word that there is not.
  """
  try:
    rest = values(argv)[1:]
  except flags.Error as error:
    raise InputError(f"{' '.join(str(error).split())}; --help lists the flags") from error
  if len(rest) > most:
    raise InputError(f"{rest[most]!r} is not understood: --help lists the flags")
  return rest
