"""`load_tokenizer`: the tokenizer of a directory or file, recognised by the names of the files."""

import dataclasses
import fnmatch
import functools
from collections.abc import Callable
from importlib import resources

from mathqwen import files as files_lib
from mathqwen.errors import NoTokenizer, UserError
from mathqwen.text import bpe, declared_stops
from mathqwen.text.huggingface import HuggingFace, from_vocab_and_merges
from mathqwen.text.rank_file import Tiktoken
from mathqwen.text.sentencepiece_model import SentencePiece
from mathqwen.text.tokenizer import Tokenizer

# Files that describe a tokenizer of any kind. They are kept with it, and written again by `save`.
COMPANIONS = (
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'chat_template.jinja',
  'chat_template.json',
)
OBJECTS = ('tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json')  # each holds one JSON object
LARGEST = 48 * 2**20  # bytes of a file; the largest tokenizer.json of the families that are read here has 20 MB


def load_tokenizer(path: str | files_lib.AnyPath | None = None) -> Tokenizer:
  """The tokenizer in a directory or file, local or remote. None or 'arithmetic': the packaged one (1,024 ids, ChatML).

  NoTokenizer (a UserError): when no known file is there. UserError: when a file is damaged or ambiguous.
  """
  if path is None or str(path) == 'arithmetic':
    return _packaged()
  path = files_lib.path(path)
  if path.is_file():
    return _from_files({path.name: files_lib.read_bytes(path, LARGEST)}, path)

  patterns = list(COMPANIONS)
  for file_format in FORMATS:
    patterns += file_format.files
  files = {}
  for file in sorted(path.iterdir()) if path.is_dir() else []:
    if any(fnmatch.fnmatchcase(file.name, pattern) for pattern in patterns):
      files[file.name] = files_lib.read_bytes(file, LARGEST)
  tokenizer = _from_files(files, path)
  tokenizer.declared_stops = declared_stops.read(path)
  return tokenizer


@functools.cache
def _packaged() -> SentencePiece:
  return SentencePiece((resources.files('mathqwen') / 'assets' / 'arithmetic.model').read_bytes())


def _from_files(files: dict[str, bytes], path: files_lib.AnyPath) -> Tokenizer:
  """The tokenizer of the first format in FORMATS whose files are all there. path: for messages."""
  for name in OBJECTS:
    try:
      if not isinstance(files_lib.parse_json(files.get(name, b'{}')), dict):
        raise ValueError('not a JSON object')
    except ValueError as error:
      raise UserError(f'{path}: {name} is not JSON ({error}); copy it again from its source') from None

  for file_format in FORMATS:
    names = [_matching(files, pattern) for pattern in file_format.files]
    if not all(names):
      continue
    try:
      return file_format.read(files)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
      for name in names:
        if instead := files_lib.not_the_file(files[name]):
          raise UserError(f'{path}: {name} {instead}') from None
      raise UserError(
        f'{path}: {" + ".join(names)} cannot be read as a tokenizer ({error}); copy the file again from its source'
      ) from None

  searched = '; '.join(' + '.join(file_format.files) for file_format in FORMATS)
  raise NoTokenizer(
    f'{path}: no tokenizer there; looked for {searched}. Give the directory of a Hugging Face checkpoint'
  )


def _matching(files: dict[str, bytes], pattern: str) -> str | None:
  """The name of the file that matches. Of several rank files it is qwen.tiktoken."""
  names = fnmatch.filter(files, pattern)
  if len(names) <= 1:
    return names[0] if names else None
  if 'qwen.tiktoken' not in names:
    raise UserError(f'several rank files: {", ".join(names)}; leave one, or rename the right one to qwen.tiktoken')
  return 'qwen.tiktoken'


@dataclasses.dataclass(frozen=True)
class TokenizerFormat:
  """The files that make a tokenizer, as names or patterns, and the function that reads them."""

  files: tuple[str, ...]
  read: Callable[[dict[str, bytes]], Tokenizer]


# In order of preference: the first whose files are all there is read.
FORMATS = (
  TokenizerFormat(('tokenizer.json',), lambda files: HuggingFace(files_lib.parse_json(files['tokenizer.json']), files)),
  TokenizerFormat(('vocab.json', 'merges.txt'), from_vocab_and_merges),
  TokenizerFormat(
    ('*.tiktoken',), lambda files: Tiktoken(bpe.read_ranks(files[_matching(files, '*.tiktoken')]), files)
  ),
  TokenizerFormat(('tokenizer.model',), lambda files: SentencePiece(files['tokenizer.model'], files)),
)
