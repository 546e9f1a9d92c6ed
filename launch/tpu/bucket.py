"""Small files of a job beside its checkpoints: BUCKET is gs://..., through gcloud, or a directory that all hosts share.

Runs on the launcher's machine and, with the Python of the TPU VM's image, on the hosts: so only the standard library of
Python 3.8.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable

MISSING = re.compile(r'matched no objects|no URLs matched|NOT_FOUND|not found|does not exist|\b404\b', re.IGNORECASE)
STORAGE = ['gcloud', 'storage']


class Failed(Exception):
  """A command failed; its own words."""


def run(line: list[str], seconds: float = 600) -> str:
  """Runs a command and returns its standard output. Failed: with its own words, in one line."""
  pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'stdin': subprocess.DEVNULL}
  try:
    done = subprocess.run(line, timeout=seconds, check=False, **pipes)
  except FileNotFoundError:
    raise Failed(f'{line[0]} is not installed on this host') from None
  except subprocess.TimeoutExpired:
    raise Failed(f'{" ".join(line[:4])} did not answer within {seconds:.0f} seconds') from None
  out, err = (text.decode(errors='replace') for text in (done.stdout, done.stderr))
  if done.returncode:
    raise Failed(' '.join((err or out).split())[-600:] or f'{" ".join(line[:4])} ended with {done.returncode}')
  return out


class Bucket:
  """Files below one address."""

  def __init__(self, base: str, command: Callable[..., str] = run):
    """base: gs://... or a directory. command: runs gcloud; returns what it prints, or raises with its words."""
    self.base = base
    self._run = command

  @property
  def is_remote(self) -> bool:
    """Whether gcloud is needed."""
    return self.base.startswith('gs://')

  def address(self, name: str) -> str:
    """The address of one file."""
    return f'{self.base}/{name}'

  def read(self, name: str) -> str | None:
    """The text of a file; None when there is none. Raises what `command` raises; of a directory, OSError."""
    if not self.is_remote:
      try:
        return pathlib.Path(self.address(name)).read_text(errors='replace')
      except (FileNotFoundError, NotADirectoryError):
        return None
    try:
      return self._run([*STORAGE, 'cat', self.address(name)])
    except Exception as error:
      if MISSING.search(str(error)):
        return None
      raise

  def write(self, name: str, text: str) -> None:
    """Writes a file as a whole. Raises what `command` raises."""
    if not self.is_remote:
      path = pathlib.Path(self.address(name))
      path.parent.mkdir(parents=True, exist_ok=True)
      part = path.with_name(f'.{path.name}.{os.getpid()}.part')
      part.write_text(text)
      os.replace(str(part), str(path))
      return
    with tempfile.TemporaryDirectory() as folder:
      file = pathlib.Path(folder, 'file')
      file.write_text(text)
      self._run([*STORAGE, 'cp', str(file), self.address(name)])

  def upload(self, source: str, name: str) -> None:
    """Copies a local file, or the content of a folder, over what is there. Raises what `command` raises."""
    target = self.address(name)
    if os.path.isdir(source):
      for path in pathlib.Path(source).rglob('*'):
        if path.is_file():
          self.upload(str(path), f'{name}/{path.relative_to(source)}')
    elif self.is_remote:
      self._run([*STORAGE, 'cp', source, target], 7200)
    else:
      pathlib.Path(target).parent.mkdir(parents=True, exist_ok=True)
      shutil.copyfile(source, target)

  def remove(self, name: str) -> None:
    """Removes a file or folder, if it is there. Raises what `command` raises."""
    if not self.is_remote:
      if os.path.isdir(self.address(name)):
        shutil.rmtree(self.address(name))
      elif os.path.exists(self.address(name)):
        os.remove(self.address(name))
      return
    try:
      self._run([*STORAGE, 'rm', '--recursive', self.address(name)])
    except Exception as error:
      if not MISSING.search(str(error)):
        raise
