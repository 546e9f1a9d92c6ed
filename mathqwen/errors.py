"""The errors for what a user can fix, their parts, and `report`, which speaks to the user on standard error."""

import difflib
import errno
import os
import sys
import traceback
from collections.abc import Mapping


class UserError(Exception):
  """One line: what is wrong, where, and the remedy. The command line prints it and exits with status 2."""


class NoTokenizer(UserError):
  """A directory without any tokenizer files: its model has logits, but can neither read nor write text."""


class Unreachable(UserError):
  """A place of the user's that refuses, does not answer or does not exist, such as a bucket.

  Unlike for a missing or damaged file there is no going on without it: who catches UserError lets this one through.
  """


class Preempted(Exception):
  """A run was asked to stop and has saved: the same command continues it. The command line exits with status 75."""


def report(text: str) -> None:
  """Prints `text` on standard error at once: progress, notes and errors. Standard output is for results alone."""
  print(text, file=sys.stderr, flush=True)


def look_up(kind: str, name: str, table: Mapping):
  """`table[name]`. UserError, with the nearest name, when there is none.

  kind: what the names are, for the message: 'benchmark', 'prompt', ...
  """
  if name in table:
    return table[name]
  near = difflib.get_close_matches(name.lower(), table, n=1)
  hint = f'did you mean {near[0]!r}? ' if near else ''
  raise UserError(f'unknown {kind} {name!r}; {hint}there are: {", ".join(table)}')


def line_of(error: Exception, path: os.PathLike) -> int:
  """The line of the Python file at `path`, one of the user's, that raised `error`; 1 when it is not known."""
  if isinstance(error, SyntaxError):
    return error.lineno or 1
  lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
  return lines[-1] if lines else 1


# What a user can do about an error of the operating system. Any other one is a defect of ours.
_REMEDIES = {
  errno.ENOSPC: 'free some space and run the same command again',
  errno.EDQUOT: 'free some of the quota and run the same command again',
  errno.EFBIG: 'raise the limit of file sizes (ulimit -f) and run the same command again',
  errno.EIO: 'the disk failed: check it and run the same command again',
  errno.EACCES: 'name a place that you may read and write',
  errno.EPERM: 'name a place that you may read and write',
  errno.ENAMETOOLONG: 'give a shorter name',
  errno.EROFS: 'name a place that can be written',
  errno.ENOENT: 'check the spelling of the path',
  errno.ENOTDIR: 'a file stands where a directory is needed',
  errno.EEXIST: 'a file stands where a directory is needed',
  errno.EISDIR: 'name a file, not a directory',
}


def explain_os_error(error: OSError) -> str | None:
  """One line for an error of the operating system that the user can fix; None for any other."""
  if error.errno not in _REMEDIES:
    return None
  return f'{error.filename or "disk"}: {error.strerror}; {_REMEDIES[error.errno]}'
