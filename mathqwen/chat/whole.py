"""Ids of a whole rendered conversation, as transformers' `tokenizer(text, add_special_tokens=False)` gives them.

A conversation is encoded as one text, by the `tokenizers` library with all added tokens, because pieces encoded one by
one differ: at white space, at prefix spaces of SentencePiece, at tokens that take the white space around them.

Special tokens (`special` in the files) come from the template only; where text of the conversation looks like one it
stays text. Other added tokens, <think> or <tool_call>, come from the template and from what the assistant says, because
the model generates them; from other turns only if the template itself does not write them: a question can forge no
header.
"""

import bisect
import dataclasses
import json
import weakref
from collections.abc import Callable, Sequence

from mathqwen.chat.traced import LITERAL, Text
from mathqwen.errors import UserError
from mathqwen.files import parse_json
from mathqwen.text import bpe
from mathqwen.text.huggingface import panics
from mathqwen.text.rank_file import Tiktoken
from mathqwen.text.sentencepiece_model import SentencePiece
from mathqwen.text.tokenizer import Tokenizer

NAMED = ('bos_token', 'eos_token', 'unk_token', 'sep_token', 'pad_token', 'cls_token', 'mask_token')
_FLAGS = ('single_word', 'lstrip', 'rstrip', 'normalized', 'special')


class NotExact(Exception):
  """These texts cannot be encoded as transformers does and keep special tokens out of them."""


@dataclasses.dataclass(frozen=True)
class Encoded:
  ids: list[int]
  starts: list[int]  # of each token, the first character
  stops: list[int]  # one past the last
  specials: list[tuple[int, int]]  # the places of special tokens


def _flags(token) -> dict[str, bool]:
  """How an added token matches, of an entry in a file or of an AddedToken."""
  if isinstance(token, dict):
    return {flag: token[flag] for flag in _FLAGS if flag in token}
  return {flag: getattr(token, flag) for flag in _FLAGS}


def _content(token) -> str | None:
  return token.get('content') if isinstance(token, dict) else token


def _definition(tokenizer: Tokenizer) -> dict:
  """The tokenizer.json that transformers would use."""
  config = parse_json(tokenizer.files.get('tokenizer_config.json', b'{}'))
  if 'tokenizer.json' in tokenizer.files:
    definition = parse_json(tokenizer.files['tokenizer.json'])
  elif isinstance(tokenizer, Tiktoken):
    definition = parse_json(tokenizer._files_for('qwen2')['tokenizer.json'])
  elif isinstance(tokenizer, SentencePiece):
    definition = bpe.llama_json(tokenizer._model, tokenizer.special)
    config = {'tokenizer_class': 'LlamaTokenizer'} | config
  else:
    definition = json.loads(tokenizer._model.to_str())
    definition['added_tokens'] = [bpe.added_token(token, i) for token, i in tokenizer.special.items()]
  definition |= {'post_processor': None, 'truncation': None, 'padding': None}
  class_name = (config.get('tokenizer_class') or '').removesuffix('Fast')
  if class_name in _REBUILT and not (class_name in _METASPACE and _byte_level(definition)):
    _rebuild(definition, class_name, config)
  return definition


# Classes of transformers 5 that take the vocabulary of tokenizer.json, and the rest from their code and from
# tokenizer_config.json. Two of them write spaces as U+2581; with a byte-level file they are not used.
_METASPACE = ('LlamaTokenizer', 'CodeLlamaTokenizer')
_REBUILT = (*_METASPACE, 'Qwen2Tokenizer')


def _rebuild(definition: dict, class_name: str, config: dict) -> None:
  """Changes a tokenizer.json as this class does."""
  decoder = {entry['content']: entry for entry in (config.get('added_tokens_decoder') or {}).values()}
  if decoder:
    flags = {token: _flags(entry) for token, entry in decoder.items()}
    added = definition.get('added_tokens') or []
    definition['added_tokens'] = [token | flags[token['content']] for token in added if token['content'] in flags]
  model = definition.get('model') or {}
  if class_name in _METASPACE and model.get('type') == 'BPE':
    scheme = 'always' if config.get('legacy') and class_name == 'LlamaTokenizer' else 'first'
    definition['normalizer'] = None
    definition['pre_tokenizer'] = {
      'type': 'Metaspace',
      'replacement': '\u2581',
      'prepend_scheme': 'never' if config.get('add_prefix_space') is False else scheme,
      'split': False,
    }
    definition['model'] = model | {'fuse_unk': True, 'byte_fallback': True, 'dropout': None, 'unk_token': None}


def _steps(definition: dict) -> list[dict]:
  """The normalizers and pre-tokenizers of a definition, those in sequences too."""
  found = []
  queue = [definition.get('normalizer'), definition.get('pre_tokenizer')]
  while queue:
    step = queue.pop()
    if isinstance(step, dict):
      found.append(step)
      queue += step.get('normalizers') or []
      queue += step.get('pretokenizers') or []
  return found


def _byte_level(definition: dict) -> bool:
  return any(step.get('type') == 'ByteLevel' for step in _steps(definition))


def _depends_on_place(definition: dict) -> bool:
  """Whether a text encodes differently at the beginning and after a special token."""
  for step in _steps(definition):
    if step.get('type') == 'Prepend' or step.get('add_prefix_space') is True:
      return True
    if step.get('type') == 'Metaspace' and step.get('prepend_scheme', 'always') != 'never':
      return True
  return False


class WholeText:
  """Encodes whole conversations with the tokens of one tokenizer."""

  def __init__(self, tokenizer: Tokenizer):
    import tokenizers

    config = parse_json(tokenizer.files.get('tokenizer_config.json', b'{}'))
    definition = _definition(tokenizer)
    self._in_pieces = not _depends_on_place(definition)
    self._model = tokenizers.Tokenizer.from_str(json.dumps(definition))
    self._bare = None
    self._definition_without_tokens = lambda: json.dumps(definition | {'added_tokens': []})

    decoder = config.get('added_tokens_decoder') or {}
    for _, entry in sorted(decoder.items(), key=lambda item: int(item[0])):
      self._model.add_tokens([tokenizers.AddedToken(entry['content'], **_flags(entry))])
    self.named = named_tokens(tokenizer)
    more = config.get('additional_special_tokens') or config.get('extra_special_tokens') or []
    more = list(more.values()) if isinstance(more, dict) else more
    # A token that is added again takes the new flags, as in transformers: those of the files for bos_token and
    # the like, none for other special tokens.
    flags = {token.content: _flags(token) for token in self._model.get_added_tokens_decoder().values()}
    plain = {'normalized': False}
    for token, kept in [(token, flags.get(token, plain)) for token in self.named.values()] + [
      (_content(token), _flags(token) if isinstance(token, dict) else plain) for token in more if token
    ]:
      self._model.add_special_tokens([tokenizers.AddedToken(token, **kept | {'special': True})])

    added = self._model.get_added_tokens_decoder()
    special = {*self.named.values(), *map(_content, more)}
    self.added = {i: token.content for i, token in added.items()}
    self.special_ids = frozenset(i for i, token in added.items() if token.special or token.content in special)
    self.tokens = tuple(self.added.values())

  def encode(
    self, texts: Sequence[Text], says: Sequence[Callable[[int], bool]], control: frozenset[str]
  ) -> list[Encoded]:
    """ids and places of the tokens of each text.

    says     for each text: turn -> whether that message is the assistant's
    control  the added tokens that the template writes

    NotExact: when a message contains what looks like a special token and the tokenizer cannot encode it as text.
    """
    with panics('encode'):
      encodings = self._model.encode_batch([str.__str__(text) for text in texts], add_special_tokens=False)
    encoded = []
    for text, own, encoding in zip(texts, says, encodings, strict=True):
      ids, offsets = encoding.ids, encoding.offsets
      places = [k for k, i in enumerate(ids) if i in self.added]
      if self._forged(text, own, control, ids, offsets, places):
        ids, offsets, places = self._apart(text, own, control)
      starts = [start for start, _ in offsets]
      stops = [stop for _, stop in offsets]
      encoded.append(Encoded(ids, starts, stops, [offsets[k] for k in places if ids[k] in self.special_ids]))
    return encoded

  def _forged(self, text, own, control, ids, offsets, places) -> list[tuple[int, int]]:
    """The places where text of the conversation, or a mixture with it, has become a token that it must not become."""
    forged = []
    run_stops = []
    at = 0
    for length, _ in text._runs:
      at += length
      run_stops.append(at)
    for k in places:
      token = self.added[ids[k]]
      start, stop = offsets[k]
      at = text.find(token, start, stop)
      if at >= 0:  # not so for a token that matched normalised text
        start, stop = at, at + len(token)
      run = bisect.bisect_right(run_stops, start)
      while run < len(run_stops) and (run_stops[run - 1] if run else 0) < stop:
        length, where = text._runs[run]
        run += 1
        if not length or where & 3 == LITERAL:
          continue
        if ids[k] in self.special_ids or (token in control and not own((where >> 3) - 1)):
          forged.append((start, stop))
          break
    return forged

  def _apart(self, text: Text, own, control):
    """The same where tokens have to be kept out of the text: what lies between the others is encoded without them."""
    if not self._in_pieces:
      raise NotExact
    harmless = next(c for c in '\u3402\u3404\u3406\u340a' if not any(c in token for token in self.tokens))
    masked = list(str.__str__(text))
    while True:
      encoding = self._model.encode(''.join(masked), add_special_tokens=False)
      ids, offsets = encoding.ids, encoding.offsets
      places = [k for k, i in enumerate(ids) if i in self.added]
      forged = self._forged(Text(''.join(masked), text._runs), own, control, ids, offsets, places)
      if not forged:
        break
      origins = [where for length, where in text._runs for _ in range(length)]
      for start, stop in forged:
        for at in range(start, stop):
          if origins[at] & 3 != LITERAL:
            masked[at] = harmless

    bare = self._without_tokens()
    found, where, kept = [], [], []
    at = 0
    for k in [*places, None]:
      start, stop = offsets[k] if k is not None else (len(text), len(text))
      part = bare.encode(str.__str__(text)[at:start], add_special_tokens=False)
      found += part.ids
      where += [(at + first, at + last) for first, last in part.offsets]
      if k is not None:
        kept.append(len(found))
        found.append(ids[k])
        where.append((start, stop))
      at = stop
    return found, where, kept

  def _without_tokens(self):
    if self._bare is None:
      import tokenizers

      self._bare = tokenizers.Tokenizer.from_str(self._definition_without_tokens())
    return self._bare


def named_tokens(tokenizer: Tokenizer) -> dict[str, str]:
  """bos_token, eos_token and so on: the variables that transformers gives to a template."""
  config = parse_json(tokenizer.files.get('tokenizer_config.json', b'{}'))
  older = parse_json(tokenizer.files.get('special_tokens_map.json', b'{}'))
  class_name = (config.get('tokenizer_class') or '').removesuffix('Fast')
  named = {}
  for name in NAMED:
    default = _DEFAULTS.get(class_name, {}).get(name) if name not in {**config, **older} else None
    # transformers reads the older file only where tokenizer_config.json has no added_tokens_decoder; then it wins.
    token = config.get(name) if 'added_tokens_decoder' in config else older.get(name, config.get(name))
    token = _content(token) or default
    if token:
      named[name] = token
  return named


# What the classes of transformers assume for a key that tokenizer_config.json lacks.
_DEFAULTS = {
  'LlamaTokenizer': {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'},
  'Qwen2Tokenizer': {name: '<|endoftext|>' for name in ('eos_token', 'unk_token', 'pad_token')},
}

_ENCODERS: 'weakref.WeakKeyDictionary[Tokenizer, WholeText]' = weakref.WeakKeyDictionary()


def encoder(tokenizer: Tokenizer) -> WholeText:
  """The WholeText of a tokenizer, made once. UserError: when the files of the tokenizer contradict each other."""
  if tokenizer not in _ENCODERS:
    try:
      _ENCODERS[tokenizer] = WholeText(tokenizer)
    except UserError:
      raise
    except Exception as error:  # the library raises a bare Exception, and no subclass of it
      raise UserError(
        f'the tokenizer files do not fit together ({type(error).__name__}: {" ".join(str(error).split())[:300]}); copy '
        'tokenizer.json and tokenizer_config.json again from their source'
      ) from None
  return _ENCODERS[tokenizer]


def loss_mask(encoded: Encoded, spans: Sequence[tuple[int, int]]) -> list[int]:
  """1 for each token with a character in one of the spans."""
  mask = [0] * len(encoded.ids)
  for start, stop in spans:
    first = bisect.bisect_right(encoded.stops, start)
    last = bisect.bisect_left(encoded.starts, stop)
    mask[first:last] = [1] * max(last - first, 0)
  return mask
