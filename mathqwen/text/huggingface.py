"""`HuggingFace`: tokenizer.json, or the vocab.json and merges.txt that Qwen2's slow tokenizer reads."""

import contextlib
import json
import threading
from collections.abc import Iterator

from mathqwen import files as files_lib
from mathqwen.errors import UserError
from mathqwen.text import bpe
from mathqwen.text.rank_file import Tiktoken
from mathqwen.text.tokenizer import Tokenizer, added_tokens

_SECONDS = 5  # most that a tokenizer may take for the text below
# Words, numbers, signs and long runs: what regular expressions that backtrack without end have trouble with.
_TRIED_OUT = [' '.join(['What is 12 + 30? x_1, aab', *(letter * 40 for letter in 'aA1 \n!\u00e9\u4e2d')])]


class HuggingFace(Tokenizer):
  """A tokenizer.json, run by the `tokenizers` library. Its added tokens become `special`; no text encodes to them."""

  def __init__(self, definition: dict, files: dict[str, bytes]):
    """definition: the parsed tokenizer.json. ValueError: when the library cannot read it."""
    import tokenizers

    self.special = {token['content']: token['id'] for token in definition.get('added_tokens', [])}
    for token, token_id in self.special.items():
      if not isinstance(token, str) or type(token_id) is not int or not 0 <= token_id < 2**31:
        raise ValueError(f'the added token {token!r} has the id {token_id!r}')
    # Without added tokens and post-processing the library can only produce ids of the text itself.
    text_only = definition | {'added_tokens': [], 'post_processor': None, 'truncation': None, 'padding': None}
    try:
      self._model = tokenizers.Tokenizer.from_str(json.dumps(text_only))
    except Exception as error:
      # The library raises a bare Exception, and no subclass of it, for a definition that it cannot read.
      if type(error) is not Exception:
        raise
      raise ValueError(str(error)) from None
    vocab = self._model.get_vocab(with_added_tokens=False)
    self.vocab_size = max(*vocab.values(), *self.special.values()) + 1
    self.text_size = 1 + max((token_id for token, token_id in vocab.items() if token not in self.special), default=-1)
    self.files = files
    self._try_out()

  def _try_out(self):
    """ValueError: when a short text already takes too long, as with some regular expressions."""
    failures: list[str] = []

    def encode():
      try:
        self._encode(_TRIED_OUT)
      except UserError as error:
        failures.append(str(error))

    # The library cannot be interrupted. A thread that it keeps ends with the process.
    thread = threading.Thread(target=encode, daemon=True)
    thread.start()
    thread.join(_SECONDS)
    if thread.is_alive():
      raise ValueError(f'a text of {len(_TRIED_OUT[0])} characters takes it more than {_SECONDS} seconds')
    if failures:
      raise ValueError(failures[0])

  def _encode(self, texts: list[str]) -> list[list[int]]:
    with panics('encode'):
      return [encoding.ids for encoding in self._model.encode_batch_fast(texts, add_special_tokens=False)]

  def _decode(self, ids: list[int]) -> str:
    with panics('decode'):
      return self._model.decode(ids, skip_special_tokens=False)

  def _id_of(self, token: str) -> int | None:
    found = super()._id_of(token)
    if found is None:
      found = self._model.token_to_id(token)
    return found if found is not None and found < self.vocab_size else None

  def _files_for(self, layout: str | None) -> dict[str, bytes]:
    if layout != 'qwen1':
      return super()._files_for(layout)
    try:
      tokens = bpe.tokens_by_rank(json.loads(self._model.to_str()))
      qwen1_specials = bpe.specials('qwen1', len(tokens))
      for token, token_id in self.special.items():
        if qwen1_specials.get(token) != token_id:
          raise ValueError(f'Qwen-1 has no special token {token} with the id {token_id}')
    except ValueError as error:
      raise UserError(
        f"the tokenizer cannot be written as Qwen-1's rank file: {error}; use the layout of another family"
      ) from None
    return Tiktoken(tokens, self.files)._files_for(layout)


@contextlib.contextmanager
def panics(verb: str) -> Iterator[None]:
  """UserError for a panic of the library, which is written in Rust: a regular expression that gives up, for example."""
  try:
    yield
  except BaseException as error:
    if type(error).__name__ != 'PanicException':  # of pyo3_runtime, which cannot be imported
      raise
    raise UserError(f'the tokenizer cannot {verb} a text ({error}); use the files that were published') from None


def from_vocab_and_merges(files: dict[str, bytes]) -> HuggingFace:
  """The tokenizer of vocab.json, merges.txt and tokenizer_config.json.

  The first two hold only the ranks. The special tokens are in tokenizer_config.json (or added_tokens.json), and how
  text is split and normalised is in the code of the class that tokenizer_config.json names.

  UserError: when that class is not Qwen2's, or when the ids of the special tokens cannot be known.
  """
  config = json.loads(files.get('tokenizer_config.json', b'{}'))
  class_name = config.get('tokenizer_class', '')
  if not isinstance(class_name, str) or not class_name.startswith('Qwen2Tokenizer'):
    raise UserError(
      f'vocab.json + merges.txt of tokenizer_class {class_name!r}: how it splits text is known for '
      'Qwen2Tokenizer only; add the tokenizer.json, or a tokenizer_config.json that names the class'
    )
  vocab = files_lib.parse_json(files['vocab.json'])
  special = _special_tokens(files, config, len(vocab))
  # No merge has a carriage return in it: bytes are written as letters. Editors add them, and a byte order mark.
  lines = [line.rstrip('\r') for line in files['merges.txt'].decode('utf-8-sig').split('\n')]
  merges = [line.split(' ') for line in lines if line and not line.startswith('#version')]
  definition = bpe.byte_level_json(vocab, merges)
  definition['added_tokens'] = [bpe.added_token(token, token_id) for token, token_id in special.items()]
  return HuggingFace(definition, files)


def _special_tokens(files: dict[str, bytes], config: dict, ranks: int) -> dict[str, int]:
  """Token -> id from the first source that has ids; where the files only name tokens, the family's ids."""
  if with_ids := added_tokens(files):
    return with_ids

  named = [config.get('eos_token'), config.get('pad_token'), *(config.get('additional_special_tokens') or ())]
  names = {token['content'] if isinstance(token, dict) else token for token in named if token}
  return bpe.specials(bpe.family_with(names), ranks)
