"""`SentencePiece`: a tokenizer.model file, of the LLaMA family or the small one in this package."""

import json

from mathqwen.text import bpe
from mathqwen.text.bpe import IM_START
from mathqwen.text.tokenizer import Tokenizer, added_tokens, compact_json, pretty_json

# What tells a model apart that normalises otherwise than LLaMA's: white space, compatibility characters, bytes.
_SAMPLE = (
  'x',
  ' x',
  'a  b   c',
  '5! = 120.',
  '\n\n  c \t d ',
  '\uff21 \ufb01 e\u0301 \U0001f600 \u5c0f',
  '\u00a0\u200b',
  '',
)


class SentencePiece(Tokenizer):
  """A tokenizer.model. White space survives a round trip if the model keeps it, as the packaged one does.

  The ids are those of the SentencePiece library. `LlamaTokenizer` of transformers 5 gives other ids for a text that
  starts with a space or with U+2581, because it then adds no space in front.
  """

  def __init__(self, model: bytes, files: dict[str, bytes] | None = None):
    import sentencepiece

    self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
    self.vocab_size = self._model.vocab_size()
    if self.vocab_size == 0:
      raise ValueError('it has no pieces')
    pieces = [self._model.id_to_piece(i) for i in range(self.vocab_size)]
    self.special = {
      piece: i for i, piece in enumerate(pieces) if self._model.is_control(i) or self._model.is_unknown(i)
    }
    self.text_size = 1 + max((i for i, piece in enumerate(pieces) if piece not in self.special), default=-1)
    for token, token_id in added_tokens(files or {}).items():
      if token_id >= len(pieces):
        self.special[token] = token_id
        self.vocab_size = max(self.vocab_size, token_id + 1)

    # Pieces that contain real spaces show that the model normalises nothing: a plain BPE with byte fallback, which a
    # tokenizer.json can express exactly. LLaMA's writes spaces as U+2581 and keeps its own file.
    is_plain_bpe = IM_START in self.special and ' ' in pieces
    self.files = dict(files or {})
    if is_plain_bpe:
      self.files['tokenizer.json'] = pretty_json(bpe.sentencepiece_json(self._model))
    else:
      self.files['tokenizer.model'] = model

  def _encode(self, texts: list[str]) -> list[list[int]]:
    return self._model.encode(texts)

  def _decode(self, ids: list[int]) -> str:
    # Tokens that were added to the files may leave a gap of ids that no piece has.
    return self._model.decode([i for i in ids if i < self._model.vocab_size()])

  def _files_for(self, layout: str | None) -> dict[str, bytes]:
    """With a tokenizer.json for other libraries: from tokenizer.model alone, transformers 5 makes another tokenizer.

    It orders merges by their ids; LLaMA's runs of spaces have low ids and the lowest scores, so they would come first.
    """
    files = super()._files_for(layout)
    if layout is not None and 'tokenizer.json' not in files:
      definition = bpe.llama_json(self._model, self.special)
      if self._is_same(definition):
        files['tokenizer.json'] = compact_json(definition)
    return files

  def _is_same(self, definition: dict) -> bool:
    """Whether a tokenizer.json gives the ids of this model."""
    import tokenizers

    other = tokenizers.Tokenizer.from_str(json.dumps(definition | {'added_tokens': []}))
    return all(other.encode(text).ids == self._model.encode(text) for text in _SAMPLE)

  def _hf_config(self) -> dict:
    if 'tokenizer.json' in self.files:
      return super()._hf_config()
    return {'tokenizer_class': 'LlamaTokenizer', 'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'}
