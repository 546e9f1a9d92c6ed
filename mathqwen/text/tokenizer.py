"""Text <-> token ids, one class per file format, one face.

  kind            files                                         families
  HuggingFace     tokenizer.json, or vocab.json + merges.txt    Qwen1.5, Qwen2, Qwen2.5, Qwen3, ...
  Tiktoken        qwen.tiktoken, or another *.tiktoken          Qwen-1 (Qwen-7B, Qwen-72B, ...)
  SentencePiece   tokenizer.model                               LLaMA; the small one in this package

No text becomes a special or added token: `encode('<|im_end|>')` gives the pieces of those ten characters. Special ids
are placed by `data.chatml` alone, so a question cannot end its own turn.
"""

import dataclasses
import fnmatch
import functools
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path

from etils import epath

from mathqwen.errors import NoTokenizer, UserError
from mathqwen.text import bpe
from mathqwen.text.bpe import CHATML_SPECIALS, ENDOFTEXT, IM_END, IM_START
from mathqwen.text.chatml import CHAT_TEMPLATE

LONG_RUN = 100_000  # characters
# Unicode's white space except \r and \n; Python's own \s has four control characters more.
BLANKS = re.compile('[\t\x0b\x0c \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+')
COMPANIONS = (
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'chat_template.jinja',
  'chat_template.json',
)


class Tokenizer:
  """What the library asks of a tokenizer. `special` maps the text of a special or added token to its id."""

  special: dict[str, int]
  vocab_size: int  # ids are 0 .. vocab_size - 1; a model may have more rows
  files: dict[str, bytes]  # as found, for save()

  def encode(self, text: str) -> list[int]:
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text; UserError for one with half of a surrogate pair, which has no UTF-8."""
    texts = list(texts)
    for text in texts:
      try:
        text.encode()
      except UnicodeEncodeError as error:
        around = text[max(error.start - 20, 0) : error.start + 20]
        raise UserError(
          f'cannot tokenise {around!r}: character {error.start} of the text is half of a surrogate pair; '
          'read the file it came from as UTF-8, or replace the character'
        ) from None
    return self._encode(texts)

  def _encode(self, texts: list[str]) -> list[list[int]]:
    raise NotImplementedError

  def decode(self, ids: Iterable[int]) -> str:
    """Text of the ids. Skipped: special and added tokens, ids from vocab_size on; broken UTF-8 becomes U+FFFD."""
    ids = map(int, ids)
    return self._decode([i for i in ids if 0 <= i < self.vocab_size and i not in self._special_ids])

  def _decode(self, ids: list[int]) -> str:
    raise NotImplementedError

  @functools.cached_property
  def _special_ids(self) -> frozenset[int]:
    return frozenset(self.special.values())

  def _chatml(self, token: str) -> int:
    if token not in self.special:
      raise UserError(
        f'the tokenizer has no {token}, so it cannot write ChatML; use a Qwen tokenizer, or a prompt '
        'format without chat turns'
      )
    return self.special[token]

  @property
  def im_start(self) -> int:
    return self._chatml(IM_START)

  @property
  def im_end(self) -> int:
    return self._chatml(IM_END)

  @property
  def endoftext(self) -> int:
    return self._chatml(ENDOFTEXT)

  @property
  def stop_ids(self) -> tuple[int, ...]:
    """(<|im_end|>, <|endoftext|>), or </s> for a tokenizer of the LLaMA family."""
    stops = tuple(self.special[token] for token in (IM_END, ENDOFTEXT, '</s>') if token in self.special)
    if not stops:
      raise UserError(f'the tokenizer has none of {IM_END}, {ENDOFTEXT}, </s>: generation could not stop')
    return stops

  @property
  def bos(self) -> int | None:
    """What plain text begins with: <s> in the LLaMA family, nothing in Qwen's. ChatML has none."""
    config = json.loads(self.files.get('tokenizer_config.json', b'{}'))
    named = config.get('bos_token') or '<s>'
    token = self.special.get(named['content'] if isinstance(named, dict) else named)
    return token if config.get('add_bos_token', IM_START not in self.special) else None

  @property
  def pad(self) -> int:
    """<|endoftext|>. Padding is masked by position, so the value is a filler only."""
    return self.special.get(ENDOFTEXT, self.stop_ids[-1])

  def save(self, directory: str | Path, layout: str | None = None) -> str:
    """Writes what `load_tokenizer(directory)` reads, and returns whose chat template is there: 'original', 'mathqwen'.

    layout  None      the files the tokenizer was loaded from, byte for byte
            'qwen1'   qwen.tiktoken, for Qwen-1's own code; UserError if the tokenizer has no exact rank file
            another   files for Hugging Face's `AutoTokenizer.from_pretrained(directory)`: of a rank file
                      tokenizer.json, vocab.json and merges.txt are made, the other kinds have theirs
    Only where those have no chat template is ours added, as chat_template.jinja.
    """
    files = self._laid_out(layout)
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if 'tokenizer_config.json' not in files:
      files['tokenizer_config.json'] = _pretty(self._hf_config())
    config = json.loads(files['tokenizer_config.json'])
    original = bool(config.get('chat_template')) or any(name.startswith('chat_template') for name in files)
    if not original and IM_START in self.special:
      files['chat_template.jinja'] = CHAT_TEMPLATE.encode()
    for name, content in files.items():
      (directory / name).write_bytes(content)
    return 'original' if original else 'mathqwen'

  def _laid_out(self, layout: str | None) -> dict[str, bytes]:
    """A copy of the files of this layout."""
    if layout == 'qwen1':
      raise UserError(
        "Qwen-1's layout wants a rank file (qwen.tiktoken), which only byte-level BPE has; use the layout of "
        'another family, or a Qwen tokenizer'
      )
    return dict(self.files)

  def _hf_config(self) -> dict:
    has = {token: token for token in CHATML_SPECIALS if token in self.special}
    return {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'clean_up_tokenization_spaces': False,
      'eos_token': has.get(IM_END, has.get(ENDOFTEXT)),
      'pad_token': has.get(ENDOFTEXT),
      'bos_token': None,
      'unk_token': None,
      'add_prefix_space': False,
    }


class SentencePiece(Tokenizer):
  """A tokenizer.model. White space survives a round trip if the model keeps it, as the packaged one does.

  Ids are SentencePiece's own. `LlamaTokenizer` of transformers 5 differs where a text begins with a space or U+2581: it
  then adds no space in front.
  """

  def __init__(self, model: bytes, files: dict[str, bytes] | None = None):
    import sentencepiece

    self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
    ids = range(self._model.vocab_size())
    self.vocab_size = len(ids)
    pieces = [self._model.id_to_piece(i) for i in ids]
    self.special = {pieces[i]: i for i in ids if self._model.is_control(i) or self._model.is_unknown(i)}
    # A model whose pieces hold real spaces is a plain BPE with byte fallback and so has an exact tokenizer.json.
    plain = IM_START in self.special and ' ' in pieces
    self.files = dict(files or {})
    if plain:
      self.files['tokenizer.json'] = _pretty(bpe.sentencepiece_json(self._model))
    else:
      self.files['tokenizer.model'] = model

  def _encode(self, texts: list[str]) -> list[list[int]]:
    return self._model.encode(texts)

  def _decode(self, ids: list[int]) -> str:
    return self._model.decode(ids)

  def _hf_config(self) -> dict:
    if 'tokenizer.json' in self.files:
      return super()._hf_config()
    return {'tokenizer_class': 'LlamaTokenizer', 'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'}


class HuggingFace(Tokenizer):
  """A tokenizer.json, read with the `tokenizers` library. Its added tokens become `special`; no text gives them."""

  def __init__(self, definition: dict, files: dict[str, bytes]):
    import tokenizers

    added = definition.get('added_tokens', [])
    self.special = {token['content']: token['id'] for token in added}
    text_only = definition | {'added_tokens': [], 'post_processor': None, 'truncation': None, 'padding': None}
    try:
      self._model = tokenizers.Tokenizer.from_str(json.dumps(text_only))
    except Exception as error:
      if type(error) is not Exception:  # the library raises this very class for a definition it cannot read
        raise
      raise ValueError(str(error)) from None
    vocab = self._model.get_vocab(with_added_tokens=False)
    self.vocab_size = max(*vocab.values(), *self.special.values()) + 1
    self.files = files

  def _encode(self, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in self._model.encode_batch_fast(texts, add_special_tokens=False)]

  def _decode(self, ids: list[int]) -> str:
    return self._model.decode(ids, skip_special_tokens=False)

  def _laid_out(self, layout: str | None) -> dict[str, bytes]:
    if layout != 'qwen1':
      return super()._laid_out(layout)
    try:
      tokens = bpe.tokens_by_rank(json.loads(self._model.to_str()))
      known = bpe.specials('qwen1', len(tokens))
      if other := [token for token, id_ in self.special.items() if known.get(token) != id_]:
        raise ValueError(f'Qwen-1 has no special token {other[0]} with the id {self.special[other[0]]}')
    except ValueError as error:
      raise UserError(
        f"the tokenizer cannot be written as Qwen-1's rank file: {error}; use the layout of another family"
      ) from None
    return Tiktoken(tokens, self.files)._laid_out(layout)


class Tiktoken(Tokenizer):
  """Qwen-1's rank file: byte-level BPE after NFC, with the special tokens of Qwen-1 behind the ranks.

  NFC is Python's, as in Qwen-1's code. That of `tokenizers` leaves combining marks newer than Unicode 9 where they
  stand, so ids of a text with such a mark beside another may differ between the two kinds.
  """

  def __init__(self, tokens: list[bytes], files: dict[str, bytes]):
    import tiktoken

    self.special = bpe.specials('qwen1', len(tokens))
    self.vocab_size = len(tokens) + len(self.special)
    self._ranks = {token: rank for rank, token in enumerate(tokens)}
    self._model = tiktoken.Encoding('qwen', pat_str=bpe.SPLIT, mergeable_ranks=self._ranks, special_tokens=self.special)
    self.files = files

  @functools.cached_property
  def _unsplit(self):
    import tiktoken

    return tiktoken.Encoding('unsplit', pat_str='(?s).+', mergeable_ranks=self._ranks, special_tokens={})

  def _encode(self, texts: list[str]) -> list[list[int]]:
    return [self._encode_nfc(unicodedata.normalize('NFC', text)) for text in texts]

  def _encode_nfc(self, text: str) -> list[int]:
    if len(text) < LONG_RUN:
      return self._model.encode_ordinary(text)
    # A million blanks overflow tiktoken's stack in `\s+(?!\S)`, which takes all of them up to the end of the text, all
    # but the last before a word. (Blanks before a newline go to `\s*[\r\n]+`, which needs no stack.)
    ids, done = [], 0
    for run in BLANKS.finditer(text):
      start, stop = run.span()
      after = text[stop : stop + 1]
      if stop - start < LONG_RUN or after in ('\r', '\n'):
        continue
      stop -= bool(after)
      ids += self._model.encode_ordinary(text[done:start]) + self._unsplit.encode_ordinary(text[start:stop])
      done = stop
    return ids + self._model.encode_ordinary(text[done:])

  def _decode(self, ids: list[int]) -> str:
    return self._model.decode(ids)

  def _laid_out(self, layout: str | None) -> dict[str, bytes]:
    if layout is None:
      return dict(self.files)
    template = {name: content for name, content in self.files.items() if name.startswith('chat_template')}
    found = json.loads(self.files.get('tokenizer_config.json', b'{}'))
    kept = {key: found[key] for key in ('model_max_length', 'chat_template') if key in found}
    files = template | {'tokenizer_config.json': _pretty(kept | self._hf_config(layout))}
    if layout == 'qwen1':
      return files | {'qwen.tiktoken': bpe.write_ranks(list(self._ranks))}
    vocab, merges = bpe.vocab_and_merges(list(self._ranks))
    added = [bpe.added_token(token, id_) for token, id_ in self.special.items()]
    return files | {
      'tokenizer.json': _compact(bpe.byte_level_json(vocab, merges) | {'added_tokens': added}),
      'vocab.json': _compact(vocab),
      'merges.txt': '\n'.join(['#version: 0.2', *map(' '.join, merges), '']).encode(),
    }

  def _hf_config(self, layout: str = 'qwen1') -> dict:
    config = super()._hf_config()
    if layout == 'qwen1':
      return config | {'tokenizer_class': 'QWenTokenizer'}
    added = {
      str(id_): {key: value for key, value in bpe.added_token(token, id_).items() if key != 'id'}
      for token, id_ in self.special.items()
    }
    return config | {'tokenizer_class': 'Qwen2Tokenizer', 'added_tokens_decoder': added}


@functools.cache
def _packaged() -> SentencePiece:
  return SentencePiece((resources.files('mathqwen') / 'assets' / 'arithmetic.model').read_bytes())


def load_tokenizer(path: str | Path | None = None) -> Tokenizer:
  """The tokenizer in a directory or file; None or 'arithmetic': the small one in this package (1,024 ids, ChatML)."""
  if path is None or str(path) == 'arithmetic':
    return _packaged()
  path = epath.Path(path)
  if path.is_file():
    return _load_files({path.name: path.read_bytes()}, path)
  wanted = [*COMPANIONS, *(pattern for kind in KINDS for pattern in kind.files)]
  found = sorted(file for pattern in wanted for file in path.glob(pattern) if file.is_file())
  return _load_files({file.name: file.read_bytes() for file in found}, path)


def _load_files(files: dict[str, bytes], path: Path) -> Tokenizer:
  try:
    if not isinstance(json.loads(files.get('tokenizer_config.json', b'{}')), dict):
      raise ValueError('it is no object')
  except (ValueError, RecursionError) as error:
    raise UserError(f'{path}: tokenizer_config.json is not JSON ({error}); copy it again from its source') from None
  for kind in KINDS:
    found = [_matching(files, pattern) for pattern in kind.files]
    if all(found):
      try:
        return kind.load(files)
      except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
      ) as error:
        raise UserError(
          f'{path}: {" + ".join(found)} cannot be read as a tokenizer ({error}); copy the file again from its source'
        ) from None
  looked = '; '.join(' + '.join(kind.files) for kind in KINDS)
  raise NoTokenizer(f'{path}: no tokenizer there; looked for {looked}. Give the directory of a Hugging Face checkpoint')


def _matching(files: dict[str, bytes], pattern: str) -> str | None:
  """The name that matches; of several rank files qwen.tiktoken."""
  names = fnmatch.filter(files, pattern)
  if len(names) > 1 and 'qwen.tiktoken' not in names:
    raise UserError(f'several rank files: {", ".join(names)}; leave one, or call the right one qwen.tiktoken')
  return 'qwen.tiktoken' if len(names) > 1 else next(iter(names), None)


def _from_json(files: dict[str, bytes]) -> HuggingFace:
  return HuggingFace(json.loads(files['tokenizer.json']), files)


def _from_vocab_and_merges(files: dict[str, bytes]) -> HuggingFace:
  """Qwen2's slow files: the specials stand in tokenizer_config.json, the split and NFC in the class it names."""
  config = json.loads(files.get('tokenizer_config.json', b'{}'))
  name = config.get('tokenizer_class', '')
  if not name.startswith('Qwen2Tokenizer'):
    raise UserError(
      f'vocab.json + merges.txt of tokenizer_class {name!r}: how it splits text is known for '
      'Qwen2Tokenizer only; add the tokenizer.json, or a tokenizer_config.json that names the class'
    )
  vocab = json.loads(files['vocab.json'])
  if 'added_tokens_decoder' in config:
    special = {token['content']: int(i) for i, token in config['added_tokens_decoder'].items()}
  elif 'added_tokens.json' in files:
    special = json.loads(files['added_tokens.json'])
  else:
    named = [config.get('eos_token'), config.get('pad_token'), *(config.get('additional_special_tokens') or ())]
    names = {token['content'] if isinstance(token, dict) else token for token in named if token}
    special = bpe.specials(bpe.family_with(names), len(vocab))
  added = [bpe.added_token(token, i) for token, i in special.items()]
  lines = files['merges.txt'].decode().split('\n')
  merges = [line.split(' ') for line in lines if line and not line.startswith('#version')]
  return HuggingFace({**bpe.byte_level_json(vocab, merges), 'added_tokens': added}, files)


def _from_ranks(files: dict[str, bytes]) -> Tiktoken:
  return Tiktoken(bpe.read_ranks(files[_matching(files, '*.tiktoken')]), files)


def _pretty(value: dict) -> bytes:
  return (json.dumps(value, ensure_ascii=False, indent=1) + '\n').encode()


def _compact(value: dict) -> bytes:
  return json.dumps(value, ensure_ascii=False, separators=(',', ':')).encode()


@dataclasses.dataclass(frozen=True)
class Kind:
  """Which files make a tokenizer, as names or patterns, and how."""

  files: tuple[str, ...]
  load: Callable[[dict[str, bytes]], Tokenizer]


KINDS = (
  Kind(('tokenizer.json',), _from_json),
  Kind(('vocab.json', 'merges.txt'), _from_vocab_and_merges),
  Kind(('*.tiktoken',), _from_ranks),
  Kind(('tokenizer.model',), lambda files: SentencePiece(files['tokenizer.model'], files)),
)
