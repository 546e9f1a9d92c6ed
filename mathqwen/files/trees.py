"""Whole folders: removed, and put in the place of another name."""

import concurrent.futures
import contextlib
import os
import pathlib
import shutil

from mathqwen.files import gcs_requests
from mathqwen.files.gcs import GcsPath
from mathqwen.files.naming import AnyPath

_REQUESTS = 16  # at the same time


def remove_tree(path: AnyPath, keep: tuple[AnyPath, ...] = ()) -> None:
  """Removes a folder and all below it, if there is one. keep: objects to leave, on an object store."""
  if not isinstance(path, GcsPath):
    shutil.rmtree(path, ignore_errors=True)
    return
  kept = {found.key for found in keep}
  objects, _ = gcs_requests.list_below(path.bucket, path.prefix, recursive=True)
  _for_all(lambda key: gcs_requests.delete(path.bucket, key), [x.key for x in objects if x.key not in kept])


def replace_tree(source: AnyPath, target: AnyPath, last: tuple[str, ...] = ()) -> None:
  """Gives the folder `source` the name `target`, where there must be none, or an empty one.

  An object store has no folders to rename: each object is copied, within the store. Those that `last` names directly
  below come at the end: without them nobody takes the target for complete.
  """
  if not isinstance(source, GcsPath):
    if target.exists():
      target.rmdir()
    source.rename(target)
    return
  objects, _ = gcs_requests.list_below(source.bucket, source.prefix, recursive=True)
  names = [found.key.removeprefix(source.prefix) for found in objects]

  def copy(name: str):
    gcs_requests.copy(source.bucket, source.prefix + name, target.bucket, target.prefix + name)

  _for_all(copy, [name for name in names if name not in last])
  _for_all(copy, [name for name in names if name in last])
  remove_tree(source)


def _for_all(work, values: list) -> None:
  """Calls work(value) for all, several at the same time. Raises the first error after the others have ended."""
  with concurrent.futures.ThreadPoolExecutor(_REQUESTS) as threads:
    for done in [threads.submit(work, value) for value in values]:
      done.result()


def tree_bytes(path: AnyPath) -> int:
  """The bytes of all files below a folder; 0 where there is none."""
  if isinstance(path, GcsPath):
    objects, _ = gcs_requests.list_below(path.bucket, path.prefix, recursive=True)
    return sum(found.size for found in objects)
  total = 0
  for folder, _, names in os.walk(path):
    for name in names:
      with contextlib.suppress(FileNotFoundError):  # another thread has just renamed it
        total += os.path.getsize(os.path.join(folder, name))
  return total


def make_folder(path: AnyPath) -> None:
  """Makes a folder and those above it. On an object store, a folder exists as long as there are objects in it."""
  if not isinstance(path, GcsPath):
    os.makedirs(path, exist_ok=True)


def free_bytes(path: AnyPath) -> int | None:
  """The space left on the disk of `path`, which must exist; None on an object store, which has no end."""
  return None if isinstance(path, GcsPath) else shutil.disk_usage(pathlib.Path(path)).free
