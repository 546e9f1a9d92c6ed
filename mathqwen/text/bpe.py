"""BPE vocabularies: Qwen's split and special tokens, rank files, and the tokenizer.json made of each.

rank file      one line a token, the base64 of its bytes and its rank:  IQ== 0
vocab, merges  bytes written as printable characters: {'!': 0, ...} and, by rank, the pair each token is merged from
special        after the ranks, by family: 151643 <|endoftext|>, 151644 <|im_start|>, 151645 <|im_end|>, ...
"""

import base64
import binascii
from collections.abc import Iterable, Sequence

from mathqwen.errors import UserError

ENDOFTEXT, IM_START, IM_END = CHATML_SPECIALS = ('<|endoftext|>', '<|im_start|>', '<|im_end|>')
# The same in all Qwen families; every digit stands alone.
SPLIT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
  r'|\s+(?!\S)|\s+'
)
_QWEN2_5 = (
  *CHATML_SPECIALS,
  '<|object_ref_start|>',
  '<|object_ref_end|>',
  '<|box_start|>',
  '<|box_end|>',
  '<|quad_start|>',
  '<|quad_end|>',
  '<|vision_start|>',
  '<|vision_end|>',
  '<|vision_pad|>',
  '<|image_pad|>',
  '<|video_pad|>',
  '<tool_call>',
  '</tool_call>',
  '<|fim_prefix|>',
  '<|fim_middle|>',
  '<|fim_suffix|>',
  '<|fim_pad|>',
  '<|repo_name|>',
  '<|file_sep|>',
)
# Special and added tokens of each family in the order of their ids, which follow the ranks. 'qwen2' is Qwen1.5 too.
SPECIALS = {
  'qwen2': CHATML_SPECIALS,
  'qwen2.5': _QWEN2_5,
  'qwen3': (*_QWEN2_5, '<tool_response>', '</tool_response>', '<think>', '</think>'),
  'qwen1': (*CHATML_SPECIALS, *(f'<|extra_{i}|>' for i in range(205))),
}


def specials(family: str, first: int) -> dict[str, int]:
  """Token -> id of the family's special tokens, the first of them being `first`."""
  return {token: first + i for i, token in enumerate(SPECIALS[family])}


def family_with(tokens: Iterable[str]) -> str:
  """The family with the fewest special tokens that has all of `tokens`; UserError if none has."""
  tokens = set(tokens)
  for family, table in SPECIALS.items():
    if tokens <= set(table):
      return family
  unknown = tokens.difference(*SPECIALS.values()) or tokens
  raise UserError(
    f'tokenizer_config.json: no Qwen family has the special tokens {", ".join(sorted(unknown))}, so their ids are not '
    'known; add the tokenizer.json, or their ids as added_tokens_decoder'
  )


def read_ranks(content: bytes) -> list[bytes]:
  """Tokens by rank. ValueError names the line that is not `base64 rank`, or out of order, or cut short."""
  lines = content.split(b'\n')
  if lines.pop():
    raise ValueError(f'line {len(lines) + 1}: no end of line, the file stops in the middle')
  ranks: dict[bytes, int] = {}
  for line in lines:
    rank = len(ranks)
    try:
      text, number = line.split(b' ')
      token, found = base64.b64decode(text, validate=True), int(number)
    except (ValueError, binascii.Error):
      raise ValueError(f'line {rank + 1}: not a base64 token, a space and its rank: {line[:60]!r}') from None
    if found != rank:
      raise ValueError(f'line {rank + 1}: rank {found}, wants {rank}')
    if not token or token in ranks:
      raise ValueError(f'line {rank + 1}: the token {token!r} is ' + ('there already' if token else 'empty'))
    ranks[token] = rank
  missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
  if missing:
    raise ValueError(f'{len(lines)} lines, and {len(missing)} of the 256 bytes have no rank, first {missing[0]:#04x}')
  return list(ranks)


def write_ranks(tokens: Sequence[bytes]) -> bytes:
  return b''.join(b'%s %d\n' % (base64.b64encode(token), rank) for rank, token in enumerate(tokens))


def _alphabet() -> list[str]:
  """The printable character of each byte: itself, or for the others in turn U+0100, U+0101, ..."""
  printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
  others = iter(range(0x100, 0x200))
  return [chr(byte if byte in printable else next(others)) for byte in range(256)]


_LETTERS = dict(enumerate(_alphabet()))
_BYTES = {ord(letter): byte for byte, letter in _LETTERS.items()}


def _letters(token: bytes) -> str:
  return token.decode('latin-1').translate(_LETTERS)


def vocab_and_merges(tokens: Sequence[bytes]) -> tuple[dict[str, int], list[list[str]]]:
  """The byte-level vocabulary of a rank file and, by rank, the pair each longer token is merged from.

  The pair is what BPE with the lower ranks alone leaves of the token; ValueError if that is not two parts.
  """
  ranks = {token: rank for rank, token in enumerate(tokens)}
  letters = [_letters(token) for token in tokens]
  merges = []
  for rank, token in enumerate(tokens):
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
      best, at = rank, None
      for i in range(len(parts) - 1):
        merged = ranks.get(parts[i] + parts[i + 1], rank)
        if merged < best:
          best, at = merged, i
      if at is None:
        raise ValueError(f'rank {rank}: the token {token!r} is not a merge of two with lower ranks')
      parts[at : at + 2] = [tokens[best]]
    if len(parts) == 2:
      merges.append([letters[ranks[part]] for part in parts])
  return dict(zip(letters, range(len(letters)), strict=True)), merges


def _splits(definition: dict) -> list[dict]:
  """What happens to a text before BPE."""
  steps = (definition['pre_tokenizer'] or {}).get('pretokenizers', [])
  steps = [{key: value for key, value in step.items() if key != 'trim_offsets'} for step in steps]  # no matter for ids
  return [definition['normalizer'], *steps]


def tokens_by_rank(definition: dict) -> list[bytes]:
  """The rank file's tokens of a tokenizer.json; ValueError unless it is Qwen's and its ids are such ranks, exactly."""
  model = definition['model']
  if model['type'] != 'BPE' or _splits(definition) != _splits(byte_level_json({}, [])):
    raise ValueError("it does not split text as Qwen's do")
  letters = sorted(model['vocab'], key=model['vocab'].get)
  if [model['vocab'][token] for token in letters] != list(range(len(letters))):
    raise ValueError('its ids have gaps')
  try:
    tokens = [token.translate(_BYTES).encode('latin-1') for token in letters]
  except UnicodeEncodeError:
    raise ValueError('its vocabulary is not one of bytes') from None
  if vocab_and_merges(tokens)[1] != [pair.split(' ') if isinstance(pair, str) else pair for pair in model['merges']]:
    raise ValueError('its merges are not those of its ids as ranks')
  return tokens


def added_token(token: str, id_: int) -> dict:
  """An entry of a tokenizer.json's added_tokens."""
  flags = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized'), False)
  return {'id': id_, 'content': token, **flags, 'special': True}


def byte_level_json(vocab: dict[str, int], merges: list[list[str]]) -> dict:
  """The tokenizer.json of Qwen's byte-level BPE, without added tokens."""
  return {
    'version': '1.0',
    'truncation': None,
    'padding': None,
    'added_tokens': [],
    'normalizer': {'type': 'NFC'},
    'pre_tokenizer': {
      'type': 'Sequence',
      'pretokenizers': [
        {'type': 'Split', 'pattern': {'Regex': SPLIT}, 'behavior': 'Isolated', 'invert': False},
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


def sentencepiece_json(model) -> dict:
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
    'added_tokens': [added_token(model.id_to_piece(i), i) for i in sorted(special)],
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
