"""A tiny tokenizer of Qwen2's kind for tests, trained in milliseconds, without a download."""

import functools
import json

from mathqwen.text.bpe import CHATML_SPECIALS, added_token, byte_level_json
from mathqwen.text.huggingface import HuggingFace

CORPUS = """system user assistant You are a helpful assistant. What is the sum of 12 and 30? The answer is 42.
Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many clips did
Natalia sell altogether in April and May? She sold 48 / 2 = 24 clips in May, and 48 + 24 = 72 clips altogether.
Find the value of $x$ if $\\frac{x}{2} + 3 = 7$. We have $x = 8$, so the answer is $\\boxed{8}$. There are 5! = 120
ways.
A train goes 60 miles in one hour; how many miles does it go in 3 hours? It goes 60 * 3 = 180 miles. #### 180
"""


@functools.cache
def tiny_bpe_tokenizer() -> HuggingFace:
  """Byte-level BPE with Qwen2's word split: ids 0 ('!') to 399 are pieces, 400 to 402 the ChatML special tokens."""
  import tokenizers
  from tokenizers import models, pre_tokenizers, trainers

  empty = tokenizers.Tokenizer.from_str(json.dumps(byte_level_json({}, [])))
  empty.model = models.BPE()
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
  empty.train_from_iterator([CORPUS] * 2, trainer)
  trained = json.loads(empty.to_str())['model']
  added = [added_token(token, i) for i, token in enumerate(CHATML_SPECIALS, start=len(trained['vocab']))]
  definition = byte_level_json(trained['vocab'], trained['merges'])
  definition['added_tokens'] = added
  config = {
    'tokenizer_class': 'Qwen2Tokenizer',
    'eos_token': '<|im_end|>',
    'pad_token': '<|endoftext|>',
    'bos_token': None,
    'unk_token': None,
    'add_prefix_space': False,
    'clean_up_tokenization_spaces': False,
  }
  files = {'tokenizer.json': json.dumps(definition).encode(), 'tokenizer_config.json': json.dumps(config).encode()}
  return HuggingFace(definition, files)
