"""The one exception that means: the input is wrong, and here is what to do about it."""


class InputError(ValueError):
  """Something the user supplied cannot be used.

  The message is one line: it names the file, field, shape or value, and the remedy. Command lines
  print it as `error: ...` and exit with status 2; nothing has been written when it is raised.
  """
