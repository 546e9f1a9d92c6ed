"""`SentencePiece`: a tokenizer.model file, of the LLaMA family or the small one in this package."""

from mathqwen.text import bpe
from mathqwen.text.bpe import IM_START
from mathqwen.text.tokenizer import Tokenizer, added_tokens, pretty_json


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

  def _hf_config(self) -> dict:
    if 'tokenizer.json' in self.files:
      return super()._hf_config()
    return {'tokenizer_class': 'LlamaTokenizer', 'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'}
