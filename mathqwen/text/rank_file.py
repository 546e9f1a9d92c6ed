"""`Tiktoken`: Qwen-1's rank file, qwen.tiktoken, and the Hugging Face files that can be made from it."""

import functools
import json
import re
import unicodedata

from mathqwen.text import bpe
from mathqwen.text.tokenizer import Tokenizer, compact_json, pretty_json

LONG_RUN = 100_000  # characters of white space that tiktoken's regular expression is still safe with
# Unicode's white space except \r and \n. Python's own \s would add four control characters.
BLANKS = re.compile('[\t\x0b\x0c \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+')


class Tiktoken(Tokenizer):
  """Byte-level BPE after Unicode NFC; the special tokens of Qwen-1 follow the ranks.

  NFC is Python's, as in Qwen-1's own code. The NFC of the `tokenizers` library does not reorder combining marks newer
  than Unicode 9, so for a text with such a mark next to another the ids of `HuggingFace` may differ from these.
  """

  def __init__(self, tokens: list[bytes], files: dict[str, bytes]):
    """tokens: the bytes of each token, by rank."""
    import tiktoken

    self.special = bpe.specials('qwen1', len(tokens))
    self.vocab_size = len(tokens) + len(self.special)
    self.text_size = len(tokens)
    self._ranks = {token: rank for rank, token in enumerate(tokens)}
    self._model = tiktoken.Encoding('qwen', pat_str=bpe.SPLIT, mergeable_ranks=self._ranks, special_tokens=self.special)
    self.files = files

  @functools.cached_property
  def _unsplit(self):
    """The same vocabulary on a whole text, without Qwen's split into words."""
    import tiktoken

    return tiktoken.Encoding('unsplit', pat_str='(?s).+', mergeable_ranks=self._ranks, special_tokens={})

  def _encode(self, texts: list[str]) -> list[list[int]]:
    return [self._encode_nfc(unicodedata.normalize('NFC', text)) for text in texts]

  def _encode_nfc(self, text: str) -> list[int]:
    """Ids of a text in NFC form."""
    if len(text) < LONG_RUN:
      return self._model.encode_ordinary(text)

    # About a million blanks overflow the stack of tiktoken's regular expression in `\s+(?!\S)`. That alternative
    # matches a run of blanks as one word: the whole run at the end of the text, all but its last blank before a word.
    # Encode long runs without the split and everything else with it. Blanks before a newline need no such care:
    # `\s*[\r\n]+` matches them, and it uses no stack.
    ids = []
    done = 0  # characters encoded so far
    for run in BLANKS.finditer(text):
      start, stop = run.span()
      following = text[stop : stop + 1]
      if stop - start < LONG_RUN or following in ('\r', '\n'):
        continue
      if following:
        stop -= 1  # the last blank belongs to the next word
      ids += self._model.encode_ordinary(text[done:start])
      ids += self._unsplit.encode_ordinary(text[start:stop])
      done = stop
    return ids + self._model.encode_ordinary(text[done:])

  def _decode(self, ids: list[int]) -> str:
    return self._model.decode(ids)

  def _files_for(self, layout: str | None) -> dict[str, bytes]:
    if layout is None:
      return dict(self.files)

    # Keep the model's chat template and length. Drop `auto_map` and the like: they name Python code of the source.
    files = {name: content for name, content in self.files.items() if name.startswith('chat_template')}
    source_config = json.loads(self.files.get('tokenizer_config.json', b'{}'))
    kept = {key: source_config[key] for key in ('model_max_length', 'chat_template') if key in source_config}
    files['tokenizer_config.json'] = pretty_json(kept | self._hf_config(layout))

    if layout == 'qwen1':
      files['qwen.tiktoken'] = bpe.write_ranks(list(self._ranks))
      return files

    vocab, merges = bpe.vocab_and_merges(list(self._ranks))
    definition = bpe.byte_level_json(vocab, merges)
    definition['added_tokens'] = [bpe.added_token(token, token_id) for token, token_id in self.special.items()]
    files['tokenizer.json'] = compact_json(definition)
    files['vocab.json'] = compact_json(vocab)
    files['merges.txt'] = '\n'.join(['#version: 0.2', *map(' '.join, merges), '']).encode()
    return files

  def _hf_config(self, layout: str = 'qwen1') -> dict:
    config = super()._hf_config()
    if layout == 'qwen1':
      return config | {'tokenizer_class': 'QWenTokenizer'}
    decoder = {}
    for token, token_id in self.special.items():
      entry = bpe.added_token(token, token_id)
      del entry['id']  # here the id is the key
      decoder[str(token_id)] = entry
    return config | {'tokenizer_class': 'Qwen2Tokenizer', 'added_tokens_decoder': decoder}
