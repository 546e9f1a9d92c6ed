"""Text <-> token ids, one class per file format, one face.

  kind            files                                         families
  SentencePiece   tokenizer.model                               LLaMA; the small one in this package
  HuggingFace     tokenizer.json, or vocab.json + merges.txt    Qwen1.5, Qwen2, Qwen2.5, Qwen3, ...

No text becomes a special or added token: `encode('<|im_end|>')` gives the pieces of those ten characters. Special ids
are placed by `data.chatml` alone, so a question cannot end its own turn.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path

from etils import epath

from mathqwen.data.chatml import CHAT_TEMPLATE
from mathqwen.errors import NoTokenizer, UserError

ENDOFTEXT, IM_START, IM_END = CHATML_SPECIALS = ('<|endoftext|>', '<|im_start|>', '<|im_end|>')
# Qwen2's split before BPE; every digit stands alone.
QWEN2_SPLIT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
  r'|\s+(?!\S)|\s+'
)
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
    raise NotImplementedError

  def decode(self, ids: Iterable[int]) -> str:
    """Text of the ids; special and added tokens are skipped, broken UTF-8 becomes U+FFFD."""
    return self._decode([int(i) for i in ids if int(i) not in self._special_ids])

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
  def pad(self) -> int:
    """<|endoftext|>. Padding is masked by position, so the value is a filler only."""
    return self.special.get(ENDOFTEXT, self.stop_ids[-1])

  def save(self, directory: str | Path) -> str:
    """Writes what Hugging Face's `AutoTokenizer.from_pretrained(directory)` and `load_tokenizer(directory)` read.

    Files the tokenizer was loaded from are written byte for byte, their chat template included; only where they have
    none is ours added, as chat_template.jinja. Returns whose template the directory now has: 'original' or 'mathqwen'.
    """
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    files = dict(self.files)
    if 'tokenizer_config.json' not in files:
      files['tokenizer_config.json'] = _pretty(self._hf_config())
    config = json.loads(files['tokenizer_config.json'])
    original = bool(config.get('chat_template')) or any(name.startswith('chat_template') for name in files)
    if not original and IM_START in self.special:
      files['chat_template.jinja'] = CHAT_TEMPLATE.encode()
    for name, content in files.items():
      (directory / name).write_bytes(content)
    return 'original' if original else 'mathqwen'

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
  """A tokenizer.model. White space survives a round trip if the model keeps it, as the packaged one does."""

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
      self.files['tokenizer.json'] = _pretty(_bpe_json(self._model))
    else:
      self.files['tokenizer.model'] = model

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return self._model.encode(list(texts))

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

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in self._model.encode_batch_fast(list(texts), add_special_tokens=False)]

  def _decode(self, ids: list[int]) -> str:
    return self._model.decode(ids, skip_special_tokens=False)


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
  wanted = [name for kind in KINDS for name in kind.files]
  files = {name: (path / name).read_bytes() for name in (*wanted, *COMPANIONS) if (path / name).is_file()}
  return _load_files(files, path)


def _load_files(files: dict[str, bytes], path: Path) -> Tokenizer:
  for kind in KINDS:
    if all(name in files for name in kind.files):
      try:
        return kind.load(files)
      except (ValueError, KeyError, TypeError, RuntimeError) as error:  # what json, tokenizers, sentencepiece raise
        raise UserError(
          f'{path}: {" + ".join(kind.files)} cannot be read as a tokenizer ({error}); '
          'copy the file again from its source'
        ) from None
  looked = '; '.join(' + '.join(kind.files) for kind in KINDS)
  raise NoTokenizer(f'{path}: no tokenizer there; looked for {looked}. Give the directory of a Hugging Face checkpoint')


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
  added = [{'id': int(i), 'content': token['content']} for i, token in config.get('added_tokens_decoder', {}).items()]
  lines = files['merges.txt'].decode().split('\n')
  merges = [line.split(' ') for line in lines if line and not line.startswith('#version')]
  return HuggingFace({**byte_level_json(json.loads(files['vocab.json']), merges), 'added_tokens': added}, files)


def byte_level_json(vocab: dict[str, int], merges: list[list[str]]) -> dict:
  """The tokenizer.json of Qwen2's byte-level BPE, without added tokens."""
  return {
    'version': '1.0',
    'truncation': None,
    'padding': None,
    'added_tokens': [],
    'normalizer': {'type': 'NFC'},
    'pre_tokenizer': {
      'type': 'Sequence',
      'pretokenizers': [
        {'type': 'Split', 'pattern': {'Regex': QWEN2_SPLIT}, 'behavior': 'Isolated', 'invert': False},
        {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': False, 'use_regex': False},
      ],
    },
    'post_processor': None,
    'decoder': {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': False, 'use_regex': False},
    'model': {
      'type': 'BPE',
      'dropout': None,
      'unk_token': None,
      'continuing_subword_prefix': '',
      'end_of_word_suffix': '',
      'fuse_unk': False,
      'byte_fallback': False,
      'ignore_merges': False,
      'vocab': vocab,
      'merges': merges,
    },
  }


def _bpe_json(model) -> dict:
  """The tokenizer.json of a SentencePiece BPE model without normalisation: a merge for each way to split a piece."""
  ids = {model.id_to_piece(i): i for i in range(model.vocab_size())}
  special = [i for i in ids.values() if model.is_control(i) or model.is_unknown(i)]
  plain = {piece: i for piece, i in ids.items() if i not in special and not model.is_byte(i)}
  ranked = sorted((p for p in plain if len(p) > 1), key=lambda p: -model.get_score(plain[p]))
  merges = [[p[:cut], p[cut:]] for p in ranked for cut in range(1, len(p)) if p[:cut] in plain and p[cut:] in plain]
  return {
    'version': '1.0',
    'truncation': None,
    'padding': None,
    'normalizer': None,
    'pre_tokenizer': None,
    'post_processor': None,
    'added_tokens': [
      {
        'id': i,
        'content': model.id_to_piece(i),
        'single_word': False,
        'lstrip': False,
        'rstrip': False,
        'normalized': False,
        'special': True,
      }
      for i in sorted(special)
    ],
    'decoder': {'type': 'Sequence', 'decoders': [{'type': 'ByteFallback'}, {'type': 'Fuse'}]},
    'model': {
      'type': 'BPE',
      'dropout': None,
      'unk_token': None,
      'continuing_subword_prefix': None,
      'end_of_word_suffix': None,
      'fuse_unk': False,
      'byte_fallback': True,
      'ignore_merges': False,
      'vocab': {p: i for p, i in ids.items() if i not in special},
      'merges': merges,
    },
  }


def _pretty(value: dict) -> bytes:
  return (json.dumps(value, ensure_ascii=False, indent=1) + '\n').encode()


@dataclasses.dataclass(frozen=True)
class Kind:
  """Which files make a tokenizer, and how."""

  files: tuple[str, ...]
  load: Callable[[dict[str, bytes]], Tokenizer]


KINDS = (
  Kind(('tokenizer.json',), _from_json),
  Kind(('vocab.json', 'merges.txt'), _from_vocab_and_merges),
  Kind(('tokenizer.model',), lambda files: SentencePiece(files['tokenizer.model'], files)),
)
