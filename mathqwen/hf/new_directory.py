"""A new directory that appears under its name with everything in it, or not at all.

On a local disk everything is written into a temporary directory beside it, which is renamed at the end. An object store
cannot rename a directory, so there the files are written in place, and writers leave config.json for last.
"""

import contextlib
import errno
import glob
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from mathqwen.errors import UserError
from mathqwen.files import size_text


def check_target(directory: str) -> None:
  """UserError: when `directory` cannot become a new directory, because it is a file or not empty, for example."""
  directory = str(directory)
  if '://' in directory:
    if not directory.startswith('gs://'):
      raise UserError(f'{directory}: name a local directory, or one on gs://')
    try:
      target = epath.Path(directory)
      exists = target.exists()
    except ImportError:
      raise UserError(f"{directory}: pip install 'mathqwen[gcs]' first") from None
  else:
    if pathlib.PurePath(directory).name in ('', '..'):
      raise UserError(f'{directory!r} is not the name of a new directory: give it one')
    target = pathlib.Path(directory)
    exists = target.exists() or target.is_symlink()  # `exists` follows a link
    if target.is_symlink():
      raise UserError(f'{directory} is a link: name the directory itself')
  if exists and (not target.is_dir() or any(target.iterdir())):
    raise UserError(f'{directory} is {"not empty" if target.is_dir() else "a file"}: name a new directory')


@contextlib.contextmanager
def new_directory(directory: str, size: int) -> Iterator[epath.Path]:
  """Yields the directory to write into; it gets the name `directory` when the block ends without an error.

  size: bytes that will be written. UserError: when the disk has less, before any is written, and for every OSError.
  With several hosts all of them enter, and an error inside must be raised on all of them (see `together`).
  """
  if '://' in str(directory):
    yield epath.Path(directory)
    return
  target = pathlib.Path(directory).absolute()  # Orbax needs absolute paths
  temporary = target.parent / f'.{target.name}.{_process_id()}'
  is_first = jax.process_index() == 0

  def make():
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    temporary.mkdir()
    free = shutil.disk_usage(temporary).free
    if size > free:
      raise UserError(
        f'{directory}: {size_text(size)} are to be written and the disk has {size_text(free)}: '
        'free some space or name another directory'
      )

  def rename():
    if target.exists():
      target.rmdir()  # it is empty: see `check_target`
    temporary.rename(target)

  try:
    together(make if is_first else None)
    yield epath.Path(temporary)
    together(rename if is_first else None)
  except OSError as error:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = 'free some space or name another directory' if full else 'name a directory that can be written'
    raise UserError(f'{directory}: {error.strerror or error}; {remedy}') from None
  finally:
    if is_first:
      shutil.rmtree(temporary, ignore_errors=True)


def together(work: Callable[[], None] | None) -> None:
  """Does this host's work and waits for the other hosts; when it fails on one of them, an error is raised on all.

  Without this, the hosts that succeed would wait forever in the next collective operation.
  UserError: on a host that succeeded, when another failed. Else the UserError or OSError of the work itself.
  """
  error = None
  try:
    if work is not None:
      work()
  except (UserError, OSError) as raised:
    error = raised
  if jax.process_count() > 1:
    failed = multihost_utils.process_allgather(np.int32(error is not None))
    if error is None and failed.any():
      raise UserError(f'host {int(np.argmax(failed))} could not continue: see its message')
  if error is not None:
    raise error


def _process_id() -> int:
  """The id of host 0's process, the same on all hosts, because they write into one temporary directory."""
  if jax.process_count() == 1:
    return os.getpid()
  return int(multihost_utils.broadcast_one_to_all(np.int32(os.getpid())))


def _remove_leftovers(target: pathlib.Path):
  """Removes the temporary directories of killed processes, whose ids are in their names. Only Linux has /proc."""
  if not pathlib.Path('/proc').exists():
    return
  for leftover in target.parent.glob(f'.{glob.escape(target.name)}.*'):
    process_id = leftover.name.rpartition('.')[2]
    if process_id.isdigit() and not pathlib.Path('/proc', process_id).exists():
      shutil.rmtree(leftover, ignore_errors=True)
