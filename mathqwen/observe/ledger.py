"""WORKDIR/ledger.jsonl: which batch each step of a run had. `mathqwen data verify` compares it with the data.

{"step": 1, "batch": "5f1c0e6a91d2b7c3"}
"""

from mathqwen import files
from mathqwen.observe.metrics import AppendedFile, Lines, as_lines, read_lines

NAME = 'ledger.jsonl'


def read(path: files.AnyPath) -> Lines:
  """The lines of a ledger: each has a `step` and a `batch`."""
  return read_lines(path, (('step', int), ('batch', str)))


class Ledger:
  """The ledger of a run, which one host writes. A resumed run first drops the steps that it takes again."""

  def __init__(self, workdir: str, resume_step: int, primary: bool = True):
    """resume_step: the checkpoint's step, 0 for a new run. primary: whether this host writes; only one may."""
    self._file: AppendedFile | None = None
    if primary:
      path = files.path(workdir) / NAME
      lines = read(path)
      lines.report_damage(path)
      kept = as_lines(lines.up_to(resume_step, path))
      self._file = AppendedFile(path, kept, remote=files.is_remote(workdir))

  def add(self, step: int, digest: str):
    """Appends a step and the digest of its global batch."""
    if self._file is not None:
      self._file.append(as_lines([{'step': step, 'batch': digest}]))

  def sync(self):
    """Makes all lines readable for other processes. On a local disk `add` already does."""
    if self._file is not None:
      self._file.sync()

  def close(self):
    """Syncs and closes the file."""
    self.sync()
    if self._file is not None:
      self._file.close()
