"""WORKDIR/ledger.jsonl: which batch each step of a run had. `mathqwen data verify` compares it with the data.

{"step": 1, "batch": "5f1c0e6a91d2b7c3"}
"""

from mathqwen import files, strict_json
from mathqwen.observe.metrics import AppendedFile, read_lines

NAME = 'ledger.jsonl'


class Ledger:
  """The ledger of a run, which one host writes. A resumed run first drops the steps that it takes again."""

  def __init__(self, workdir: str, resume_step: int, primary: bool = True):
    """resume_step: the checkpoint's step, 0 for a new run. primary: whether this host writes; only one may."""
    self._file: AppendedFile | None = None
    if primary:
      path = files.path(workdir) / NAME
      kept = [line + '\n' for values, line in read_lines(path) if values['step'] <= resume_step]
      self._file = AppendedFile(path, ''.join(kept).encode(), remote=files.is_remote(workdir))

  def add(self, step: int, digest: str):
    """Appends a step and the digest of its global batch."""
    if self._file is not None:
      self._file.append((strict_json.dumps({'step': step, 'batch': digest}) + '\n').encode())

  def sync(self):
    """Makes all lines readable for other processes. On a local disk `add` already does."""
    if self._file is not None:
      self._file.sync()

  def close(self):
    """Syncs and closes the file."""
    self.sync()
    if self._file is not None:
      self._file.close()
