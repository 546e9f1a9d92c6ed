"""What the library asks of a tokenizer, whatever files it was read from.

  class           module                  files                                         families
  HuggingFace     huggingface.py          tokenizer.json, or vocab.json + merges.txt    Qwen1.5 and later
  Tiktoken        rank_file.py            qwen.tiktoken, or another *.tiktoken          Qwen-1
  SentencePiece   sentencepiece_model.py  tokenizer.model                               LLaMA; the one in this package

`loading.load_tokenizer` picks the class from the files it finds.

Text never becomes a special or added token: `encode('<|im_end|>')` gives the ids of those ten characters. Only the
room `chat` inserts special ids, so a question cannot end its own turn.
"""

import copy
import functools
import json
from collections.abc import Iterable, Mapping, Sequence

from mathqwen.errors import UserError
from mathqwen.text.bpe import CHATML_SPECIALS, ENDOFTEXT, IM_END, IM_START

_FEW = 64  # tokens of the text's vocabulary that a model may lack


class Tokenizer:
  """Text to ids and back. Subclasses provide `_encode`, `_decode`, and their own files."""

  special: dict[str, int]  # text of each special or added token -> its id
  vocab_size: int  # ids are 0 .. vocab_size - 1; the model's embedding may have more rows
  text_size: int  # text encodes to ids below this; special and added tokens may have higher ones
  files: dict[str, bytes]  # file name -> content, as found; what `files_in` gives
  declared_stops: tuple[int, ...] = ()  # what generation_config.json and config.json beside the files declare
  is_cut: bool = False  # whether the files have tokens that the model has no rows for: see `fitted`
  beyond: Mapping[str, int] = {}  # those of them that are special or added

  def encode(self, text: str) -> list[int]:
    """Ids of one text. UserError: as `encode_batch`."""
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text, without any special token.

    UserError: when a text contains half of a surrogate pair, which has no UTF-8 encoding, or encodes to an id that the
    model has no row for (see `fitted`).
    """
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
    encoded = self._encode(texts)
    if self.is_cut:
      self._check_rows(texts, encoded)
    return encoded

  def _check_rows(self, texts: list[str], encoded: list[list[int]]):
    """UserError: when a text has an id that the model has no row for."""
    for text, ids in zip(texts, encoded, strict=True):
      if max(ids, default=0) >= self.vocab_size:
        raise UserError(
          f'{text[:40]!r} encodes to the id {max(ids)}, and the model has rows for the ids up to {self.vocab_size - 1} '
          "only: use the tokenizer files that were published with the model, or enlarge the model's embedding"
        )

  def _encode(self, texts: list[str]) -> list[list[int]]:
    raise NotImplementedError

  def decode(self, ids: Iterable[int]) -> str:
    """Text of the ids, without special and added tokens. Invalid UTF-8 becomes U+FFFD.

    Ids from `vocab_size` on are skipped too: a model whose embedding has more rows than the tokenizer has tokens can
    generate them.
    """
    plain = []
    for token_id in map(int, ids):
      if 0 <= token_id < self.vocab_size and token_id not in self._special_ids:
        plain.append(token_id)
    return self._decode(plain)

  def _decode(self, ids: list[int]) -> str:
    raise NotImplementedError

  @functools.cached_property
  def _special_ids(self) -> frozenset[int]:
    return frozenset(self.special.values())

  def fitted(self, rows: int) -> 'Tokenizer':
    """This tokenizer for a model whose embedding has `rows` rows.

    Checkpoints exist whose tokenizer has a few tokens beyond the model's vocabulary: [PAD] at id 32000 for a vocab_size
    of 32000, or CodeLlama's marks for infilling in its Python models. The model was never trained with them. They stay
    in the files, and here they are left out: no answer stops at one, and a text that encodes to one is refused.

    UserError: when there are more than a few in the text's vocabulary.
    """
    if self.text_size - rows > _FEW:
      raise UserError(
        f'its tokenizer encodes text to ids up to {self.text_size - 1} and vocab_size is {rows}: these are files of '
        'different models, fetch them again'
      )
    if rows >= max(self.vocab_size, 1 + max(self.declared_stops, default=0)):
      return self
    fitted = copy.copy(self)
    fitted.__dict__.pop('_special_ids', None)  # cached from `special`
    fitted.is_cut = True
    fitted.special = {token: token_id for token, token_id in self.special.items() if token_id < rows}
    fitted.vocab_size = min(self.vocab_size, rows)
    fitted.beyond = {token: token_id for token, token_id in self.special.items() if token_id >= rows}
    fitted.declared_stops = tuple(token_id for token_id in self.declared_stops if token_id < rows)
    return fitted

  def _chatml_id(self, token: str) -> int:
    if token in self.beyond:
      raise UserError(
        f'{token} has the id {self.beyond[token]}, and the model has rows for ids up to {self.vocab_size - 1} only, '
        "so it cannot write ChatML; enlarge the model's embedding, or use a prompt format without chat turns"
      )
    if token not in self.special:
      raise UserError(
        f'the tokenizer has no {token}, so it cannot write ChatML; take another template (own, or a Jinja file), or a '
        'prompt format without chat turns'
      )
    return self.special[token]

  @property
  def im_start(self) -> int:
    """Id of <|im_start|>. UserError: when the tokenizer has none."""
    return self._chatml_id(IM_START)

  @property
  def im_end(self) -> int:
    """Id of <|im_end|>. UserError: when the tokenizer has none."""
    return self._chatml_id(IM_END)

  @property
  def endoftext(self) -> int:
    """Id of <|endoftext|>. UserError: when the tokenizer has none."""
    return self._chatml_id(ENDOFTEXT)

  @property
  def stop_ids(self) -> tuple[int, ...]:
    """Generation stops at any of these, the most trusted first.

    They are the eos_token_id of generation_config.json and of config.json, then the eos_token of tokenizer_config.json,
    then <|im_end|>, <|endoftext|> and </s> where the tokenizer has them.

    UserError: when there is none.
    """
    named = [self.special[token] for token in (IM_END, ENDOFTEXT, '</s>') if token in self.special]
    stops = [*self.published_stops, *named]
    if not stops:
      raise UserError(
        'neither generation_config.json nor config.json has an eos_token_id, tokenizer_config.json has no eos_token, '
        f'and the tokenizer has none of {IM_END}, {ENDOFTEXT}, </s>, so generation could not stop; use the files that '
        'were published with the model'
      )
    return tuple(dict.fromkeys(stops))

  @property
  def published_stops(self) -> tuple[int, ...]:
    """The first part of `stop_ids`: where the files of the model say that it stops."""
    eos = self._id_named('eos_token')
    return self.declared_stops if eos is None else tuple(dict.fromkeys([*self.declared_stops, eos]))

  @property
  def named_bos(self) -> int | None:
    """Id of the bos_token that the files name, whether or not a text begins with it; see `bos`."""
    return self._id_named('bos_token')

  def _id_named(self, key: str) -> int | None:
    """Id of a token of tokenizer_config.json, or of special_tokens_map.json, where older files have it."""
    for name in ('tokenizer_config.json', 'special_tokens_map.json'):
      token = json.loads(self.files.get(name, b'{}')).get(key)
      if isinstance(token, dict):
        token = token.get('content')
      if isinstance(token, str) and token:
        return self._id_of(token)
    return None

  def _id_of(self, token: str) -> int | None:
    """Id of a token by its text; None when there is none, or the model has no row for it."""
    return self.special.get(token)

  @property
  def bos(self) -> int | None:
    """Id that plain text starts with: <s> in the LLaMA family, None in Qwen's. ChatML has none."""
    config = json.loads(self.files.get('tokenizer_config.json', b'{}'))
    token = config.get('bos_token') or '<s>'
    if isinstance(token, dict):
      token = token.get('content')
    # A LLaMA tokenizer adds its bos by default; a tokenizer with ChatML tokens does so only when its config says it.
    if config.get('add_bos_token', IM_START not in self.special):
      return self.special.get(token) if isinstance(token, str) else None
    return None

  @property
  def has_template(self) -> bool:
    """Whether there is a chat template among its files."""
    config = json.loads(self.files.get('tokenizer_config.json', b'{}'))
    return bool(config.get('chat_template')) or any(name.startswith('chat_template') for name in self.files)

  @property
  def pad(self) -> int:
    """Id to fill rows with: <|endoftext|>, else the last stop token, in whatever order the files declare them.

    Padding is masked by position, so its value never matters; exports name it.
    """
    return self.special.get(ENDOFTEXT, max(self.stop_ids))

  def files_in(self, layout: str | None = None) -> dict[str, bytes]:
    """File name -> content of files that `load_tokenizer` reads, apart from a chat template that the source lacks.

    layout  None      the files the tokenizer was loaded from, byte for byte, and a generation_config.json with
                      `declared_stops` if there are any
            'qwen1'   qwen.tiktoken, for Qwen-1's own code
            another   files for Hugging Face's `AutoTokenizer.from_pretrained`; a rank file is converted to
                      tokenizer.json, vocab.json and merges.txt, the other kinds already have theirs

    UserError: when `layout` is 'qwen1' and the tokenizer cannot be written exactly as a rank file.
    """
    files = self._files_for(layout)
    if layout is None and self.declared_stops:
      files['generation_config.json'] = pretty_json({'eos_token_id': list(self.declared_stops)})
    if 'tokenizer_config.json' not in files:
      files['tokenizer_config.json'] = pretty_json(self._hf_config())
    return files

  def _files_for(self, layout: str | None) -> dict[str, bytes]:
    """The files of this layout, as a dict that the caller may change."""
    if layout == 'qwen1':
      raise UserError(
        "Qwen-1's layout needs a rank file (qwen.tiktoken), which only byte-level BPE has; use the layout of "
        'another family, or a Qwen tokenizer'
      )
    return dict(self.files)

  def _hf_config(self) -> dict:
    """The tokenizer_config.json to write when the source has none."""
    present = {token: token for token in CHATML_SPECIALS if token in self.special}
    return {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'clean_up_tokenization_spaces': False,
      'eos_token': present.get(IM_END, present.get(ENDOFTEXT)),
      'pad_token': present.get(ENDOFTEXT),
      'bos_token': None,
      'unk_token': None,
      'add_prefix_space': False,
    }


def added_tokens(files: Mapping[str, bytes]) -> dict[str, int]:
  """Token -> id of the tokens that were added to a vocabulary: of tokenizer_config.json, or of added_tokens.json.

  ValueError, KeyError, TypeError: when the file has something else there.
  """
  decoder = json.loads(files.get('tokenizer_config.json', b'{}')).get('added_tokens_decoder')
  if decoder is None:
    found = json.loads(files.get('added_tokens.json', b'{}'))
  else:
    found = {token['content']: int(token_id) for token_id, token in decoder.items()}
  for token, token_id in found.items():
    if not isinstance(token, str) or type(token_id) is not int or token_id < 0:
      raise ValueError(f'the added token {str(token)[:40]!r} has the id {str(token_id)[:40]}')
  return found


def pretty_json(value: dict) -> bytes:
  """UTF-8 JSON with one key a line, for files that people read."""
  return (json.dumps(value, ensure_ascii=False, indent=1) + '\n').encode()


def compact_json(value: dict) -> bytes:
  """UTF-8 JSON without white space, for vocabularies."""
  return json.dumps(value, ensure_ascii=False, separators=(',', ':')).encode()
