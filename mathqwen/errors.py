"""The errors for what a user can fix."""

import difflib
from collections.abc import Mapping


class UserError(Exception):
  """One line: what is wrong, where, and the remedy. The command line prints it and exits with status 2."""


class NoTokenizer(UserError):
  """A directory that has no tokenizer files at all: its model has logits, but reads and writes no text."""


class Preempted(Exception):
  """A run was asked to stop, and saved first: the same command continues it. The command line exits with status 75."""


def look_up(kind: str, name: str, table: Mapping):
  """`table[name]`; UserError with the nearest name where there is none."""
  if name in table:
    return table[name]
  near = difflib.get_close_matches(name.lower(), table, n=1)
  hint = f'did you mean {near[0]!r}? ' if near else ''
  raise UserError(f'unknown {kind} {name!r}; {hint}there are: {", ".join(table)}')
