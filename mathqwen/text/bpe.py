"""BPE vocabularies: Qwen's word split and special tokens, rank files, and how to convert them to tokenizer.json.

rank file      one line per token, the base64 of its bytes and its rank:  IQ== 0
vocab, merges  bytes written as printable characters: {'!': 0, ...}; and, by rank, the pair each token is merged from
special        their ids follow the ranks, by family: 151643 <|endoftext|>, 151644 <|im_start|>, 151645 <|im_end|>, ...
"""

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from mathqwen.errors import UserError

if TYPE_CHECKING:
  import sentencepiece

ENDOFTEXT = '<|endoftext|>'
IM_START = '<|im_start|>'
IM_END = '<|im_end|>'
CHATML_SPECIALS = (ENDOFTEXT, IM_START, IM_END)  # in the order of their ids
# How text is split into words before BPE, in all Qwen families. Every digit is a word of its own.
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
# Special and added tokens of each family in the order of their ids, which follow the ranks. Qwen1.5 has those of Qwen2.
SPECIALS = {
  'qwen2': CHATML_SPECIALS,
  'qwen2.5': _QWEN2_5,
  'qwen3': (*_QWEN2_5, '<tool_response>', '</tool_response>', '<think>', '</think>'),
  'qwen1': (*CHATML_SPECIALS, *(f'<|extra_{i}|>' for i in range(205))),
}


def specials(family: str, first: int) -> dict[str, int]:
  """Token -> id of the family's special tokens; the first of them has the id `first`."""
  return {token: first + i for i, token in enumerate(SPECIALS[family])}


def family_with(tokens: Iterable[str]) -> str:
  """The family with the fewest special tokens that has all of `tokens`. UserError: when no family has them."""
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
  """The bytes of each token, by rank.

  ValueError: when a line is not `base64 rank`, is out of order, repeats a token or is cut short (the message names the
  line), or when one of the 256 bytes has no rank.
  """
  lines = content.split(b'\n')
  if lines.pop():
    raise ValueError(f'line {len(lines) + 1}: no end of line, the file stops in the middle')

  ranks: dict[bytes, int] = {}
  for rank, line in enumerate(lines):
    try:
      text, number = line.split(b' ')
      token = base64.b64decode(text, validate=True)
      found = int(number)
    except (ValueError, binascii.Error):
      raise ValueError(f'line {rank + 1}: not a base64 token, a space and its rank: {line[:60]!r}') from None
    if found != rank:
      raise ValueError(f'line {rank + 1}: rank {found}, expected {rank}')
    if not token:
      raise ValueError(f'line {rank + 1}: the token is empty')
    if token in ranks:
      raise ValueError(f'line {rank + 1}: the token {token!r} is already on line {ranks[token] + 1}')
    ranks[token] = rank

  missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
  if missing:
    raise ValueError(f'{len(lines)} lines, and {len(missing)} of the 256 bytes have no rank, first {missing[0]:#04x}')
  return list(ranks)


def write_ranks(tokens: Sequence[bytes]) -> bytes:
  """The content of the rank file of these tokens; `read_ranks` reads them back."""
  return b''.join(b'%s %d\n' % (base64.b64encode(token), rank) for rank, token in enumerate(tokens))


def _alphabet() -> list[str]:
  """How GPT-2's vocab.json writes each byte: a printable one as itself, the others in turn as U+0100, U+0101, ..."""
  printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
  others = iter(range(0x100, 0x200))
  return [chr(byte if byte in printable else next(others)) for byte in range(256)]


_LETTERS = dict(enumerate(_alphabet()))  # byte -> letter
_BYTES = {ord(letter): byte for byte, letter in _LETTERS.items()}


def _letters(token: bytes) -> str:
  # latin-1 makes each byte the character of the same number, which `translate` then looks up.
  return token.decode('latin-1').translate(_LETTERS)


def vocab_and_merges(tokens: Sequence[bytes]) -> tuple[dict[str, int], list[list[str]]]:
  """vocab.json and merges.txt of a rank file: token -> rank, and, by rank, the pair each longer token is merged from.

  A rank file does not store the pairs. BPE with the lower ranks alone reduces a token to its pair.
  ValueError: when it leaves more than two parts.
  """
  ranks = {token: rank for rank, token in enumerate(tokens)}
  letters = [_letters(token) for token in tokens]
  merges = []
  for rank, token in enumerate(tokens):
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
      # Merge the neighbours with the lowest rank; the leftmost of equal ones, as BPE does.
      best = rank
      at = None
      for i in range(len(parts) - 1):
        merged = ranks.get(parts[i] + parts[i + 1], rank)
        if merged < best:
          best = merged
          at = i
      if at is None:
        raise ValueError(f'rank {rank}: the token {token!r} is not a merge of two tokens with lower ranks')
      parts[at : at + 2] = [tokens[best]]
    if len(parts) == 2:
      merges.append([letters[ranks[part]] for part in parts])
  vocab = dict(zip(letters, range(len(letters)), strict=True))
  return vocab, merges


def _preprocessing(definition: dict) -> list[dict]:
  """What a tokenizer.json does with a text before BPE: its normaliser, then its pre-tokenizers."""
  pre_tokenizers = (definition['pre_tokenizer'] or {}).get('pretokenizers', [])
  steps = [definition['normalizer']]
  for pre_tokenizer in pre_tokenizers:
    # trim_offsets changes character offsets only, not ids.
    steps.append({key: value for key, value in pre_tokenizer.items() if key != 'trim_offsets'})
  return steps


def tokens_by_rank(definition: dict) -> list[bytes]:
  """The tokens of the rank file that gives exactly the ids of this tokenizer.json.

  ValueError: when there is no such file, because the text is split differently, an id is missing, or the merges are not
  those that the ids as ranks imply.
  """
  model = definition['model']
  if model['type'] != 'BPE' or _preprocessing(definition) != _preprocessing(byte_level_json({}, [])):
    raise ValueError("it does not split text as Qwen's tokenizers do")
  letters = sorted(model['vocab'], key=model['vocab'].get)
  if [model['vocab'][token] for token in letters] != list(range(len(letters))):
    raise ValueError('its ids have gaps')
  try:
    tokens = [token.translate(_BYTES).encode('latin-1') for token in letters]
  except UnicodeEncodeError:
    raise ValueError('its vocabulary is not byte-level') from None

  # Older files write a merge as 'a b', newer ones as ['a', 'b'].
  merges = [pair.split(' ') if isinstance(pair, str) else pair for pair in model['merges']]
  _, expected = vocab_and_merges(tokens)
  if merges != expected:
    raise ValueError('its merges are not those of its ids as ranks')
  return tokens


def added_token(token: str, token_id: int) -> dict:
  """An entry of `added_tokens` in a tokenizer.json."""
  flags = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized'), False)
  return {'id': token_id, 'content': token, **flags, 'special': True}


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


def sentencepiece_json(model: 'sentencepiece.SentencePieceProcessor') -> dict:
  """The tokenizer.json of a SentencePiece BPE model that normalises nothing.

  SentencePiece merges any two neighbours whose concatenation is a piece, best score first. tokenizer.json needs the
  pairs listed, so every way to split a piece into two pieces becomes a merge, in the order of the scores.
  """
  ids = {model.id_to_piece(i): i for i in range(model.vocab_size())}
  special = {i for i in ids.values() if model.is_control(i) or model.is_unknown(i)}
  plain = {piece: i for piece, i in ids.items() if i not in special and not model.is_byte(i)}

  merges = []
  for piece in sorted((p for p in plain if len(p) > 1), key=lambda p: -model.get_score(plain[p])):
    for cut in range(1, len(piece)):
      pair = [piece[:cut], piece[cut:]]
      if pair[0] in plain and pair[1] in plain:
        merges.append(pair)

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
      'vocab': {piece: i for piece, i in ids.items() if i not in special},
      'merges': merges,
    },
  }


def llama_json(model: 'sentencepiece.SentencePieceProcessor', added: Mapping[str, int]) -> dict:
  """The tokenizer.json of a SentencePiece model of LLaMA's kind: a space in front, and spaces written as U+2581.

  added: special and added tokens with their ids.
  """
  definition = sentencepiece_json(model)
  definition['added_tokens'] = [added_token(token, token_id) for token, token_id in sorted(added.items(), key=_by_id)]
  definition['model']['vocab'] |= {token: token_id for token, token_id in added.items() if token_id < len(model)}
  definition['model'] |= {'fuse_unk': True, 'unk_token': model.id_to_piece(model.unk_id())}
  space = {'type': 'Replace', 'pattern': {'String': ' '}, 'content': '\u2581'}
  definition['normalizer'] = {'type': 'Sequence', 'normalizers': [{'type': 'Prepend', 'prepend': '\u2581'}, space]}
  definition['decoder']['decoders'] = [
    {'type': 'Replace', 'pattern': {'String': '\u2581'}, 'content': ' '},
    *definition['decoder']['decoders'],
    {'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0},
  ]
  return definition


def _by_id(item: tuple[str, int]) -> int:
  return item[1]
