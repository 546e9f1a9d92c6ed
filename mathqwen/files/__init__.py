"""What a user names: files and folders on this machine, or on gs://. The only place that knows about "://".

path(text)                       a pathlib.Path, or a GcsPath with the same methods; refuses every other scheme
write_atomically, replace_tree   readers find the old content or the new one, never a part of it
read_bytes, read_json_object, parse_json    small files of a checkpoint: regular ones, of a size that is checked first
open_ranges, open_new            large files, read by ranges of bytes and written piece by piece
Journal, has_lines, read_journal            a file that grows by lines, each of which outlives a killed process
locked                           one process at a time writes into a folder

naming.py says what a path is, hub.py fetches models by their names on the Hugging Face hub, gcs.py and gcs_requests.py
speak to Google Cloud Storage. Importing this costs nothing: gcsfs and huggingface_hub come with the first request.
"""

from mathqwen.files.journal import Journal, has_lines, read_journal, replace_journal
from mathqwen.files.large import RangedFile, open_new, open_ranges, open_replacing
from mathqwen.files.locks import Lock, locked
from mathqwen.files.naming import (
  GCS,
  HUB,
  HUB_SHORT,
  AnyPath,
  absolute_text,
  check,
  check_scheme,
  explained,
  is_remote,
  join,
  path,
)
from mathqwen.files.regular import is_there, not_the_file, parse_json, read_bytes, read_json_object
from mathqwen.files.trees import free_bytes, make_folder, remove_tree, replace_tree, tree_bytes
from mathqwen.files.writing import named, size_text, write_atomically

__all__ = [
  'GCS',
  'HUB',
  'HUB_SHORT',
  'AnyPath',
  'Journal',
  'Lock',
  'RangedFile',
  'absolute_text',
  'check',
  'check_scheme',
  'explained',
  'free_bytes',
  'has_lines',
  'is_remote',
  'is_there',
  'join',
  'locked',
  'make_folder',
  'named',
  'not_the_file',
  'open_new',
  'open_ranges',
  'open_replacing',
  'parse_json',
  'path',
  'read_bytes',
  'read_journal',
  'read_json_object',
  'remove_tree',
  'replace_journal',
  'replace_tree',
  'size_text',
  'tree_bytes',
  'write_atomically',
]
