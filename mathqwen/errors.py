"""The one error for what a user can fix."""


class UserError(Exception):
  """One line: what is wrong, where, and the remedy. The command line prints it and exits with status 2."""


class NoTokenizer(UserError):
  """A directory that has no tokenizer files at all: its model has logits, but reads and writes no text."""


class Preempted(Exception):
  """A run was asked to stop, and saved first: the same command continues it. The command line exits with status 75."""
