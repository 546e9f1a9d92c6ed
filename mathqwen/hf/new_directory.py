"""A new directory that appears under its name with everything in it, or not at all.

Everything is written into a temporary directory beside it, which gets the name at the end. On an object store it is
copied there, within the store, with the file that makes a model of a directory last.
"""

import contextlib
import errno
import functools
import glob
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

from mathqwen import files
from mathqwen.errors import UserError
from mathqwen.hardware import hosts

# Without these a directory is not a model: of Hugging Face, and of ours.
MARKS = ('config.json', 'experiment.json', 'adapter_config.json')


def check_target(directory: str) -> None:
  """UserError: when `directory` cannot become a new directory, because it is a file or not empty, for example."""
  target = files.path(directory)
  if target.name in ('', '..'):
    raise UserError(f'{str(directory)!r} is not the name of a new directory: give it one')
  if target.is_symlink():
    raise UserError(f'{directory} is a link: name the directory itself')
  is_directory = target.is_dir()
  if target.is_file() or (target.exists() and not is_directory):
    raise UserError(f'{directory} is a file: name a new directory')
  if is_directory and any(target.iterdir()):
    raise UserError(f'{directory} is not empty: name a new directory')


@contextlib.contextmanager
def new_directory(directory: str, size: int) -> Iterator[files.AnyPath]:
  """Yields the directory to write into; it gets the name `directory` when the block ends without an error.

  size: bytes that will be written. UserError: when the disk has less, before any is written, and for every OSError.
  With several hosts all of them enter, and an error inside must be raised on all of them (see `together`).
  """
  target = files.path(directory).absolute()  # Orbax needs absolute paths
  is_first = hosts.share()[0] == 0
  work = _on_store if files.is_remote(target) else _on_disk
  try:
    with work(target, is_first) as (temporary, make, rename):
      together(functools.partial(make, size) if is_first else None)
      yield temporary
      together(rename if is_first else None)
  except OSError as error:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = 'free some space or name another directory' if full else 'name a directory that can be written'
    raise UserError(f'{directory}: {error.strerror or error}; {remedy}') from None


# What happens on the first host: the directory to write into, its making for so many bytes, and its naming.
Steps = tuple[files.AnyPath, Callable[[int], None], Callable[[], None]]


@contextlib.contextmanager
def _on_disk(target: pathlib.Path, is_first: bool) -> Iterator[Steps]:
  temporary = target.parent / f'.{target.name}.{_process_id()}'

  def make(size: int):
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    temporary.mkdir()
    free = files.free_bytes(temporary)
    if size > free:
      raise UserError(
        f'{target}: {files.size_text(size)} are to be written and the disk has {files.size_text(free)}: '
        'free some space or name another directory'
      )

  try:
    yield temporary, make, lambda: files.replace_tree(temporary, target)
  finally:
    if is_first:
      files.remove_tree(temporary)


@contextlib.contextmanager
def _on_store(target: files.AnyPath, is_first: bool) -> Iterator[Steps]:
  """The name of the temporary directory is always the same, and it is locked: so leftovers of a killed process go."""
  workplace = target.with_name(f'.{target.name}.unfinished')
  temporary = workplace / target.name
  with contextlib.ExitStack() as stack:

    def make(size: int):
      del size  # an object store has no end
      lock = stack.enter_context(files.locked(workplace, 'conversion', 'another directory'))
      files.remove_tree(temporary)
      stack.callback(files.remove_tree, temporary)
      locks.append(lock)

    def rename():
      locks[0].check()
      files.replace_tree(temporary, target, MARKS)

    locks: list[files.Lock] = []
    yield temporary, make, rename


def together(work: Callable[[], None] | None) -> None:
  """Does this host's work and waits for the other hosts; when it fails on one of them, an error is raised on all.

  Without this, the hosts that succeed would wait forever in the next collective operation. They wait here without the
  devices, whose collectives have time limits: a host may write for minutes.
  UserError: on a host that succeeded, when another failed, with its text. Else the UserError or OSError of the work
  itself.
  """
  error = None
  try:
    if work is not None:
      work()
  except (UserError, OSError) as raised:
    error = raised
  texts = hosts.gather(None if error is None else str(error))
  if error is not None:
    raise error
  for host, text in enumerate(texts):
    if text is not None:
      raise UserError(f'host {host} could not continue: {text}')


def _process_id() -> int:
  """The id of host 0's process, the same on all hosts, because they write into one temporary directory."""
  return hosts.gather(os.getpid())[0]


def _remove_leftovers(target: pathlib.Path):
  """Removes the temporary directories of killed processes, whose ids are in their names. Only Linux has /proc."""
  if not pathlib.Path('/proc').exists():
    return
  for leftover in target.parent.glob(f'.{glob.escape(target.name)}.*'):
    process_id = leftover.name.rpartition('.')[2]
    if process_id.isdigit() and not pathlib.Path('/proc', process_id).exists():
      shutil.rmtree(leftover, ignore_errors=True)
