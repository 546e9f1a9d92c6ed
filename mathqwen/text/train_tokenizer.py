"""Trains the small SentencePiece tokenizer that ships as `mathqwen/assets/arithmetic.model`.

  python -m mathqwen.text.train_tokenizer --input gsm8k/train.jsonl.gz math/train.jsonl.gz --vocab-size 1024 \\
    --output mathqwen/assets/arithmetic.model

The shipped file was trained on the training splits of GSM8K (openai/grade-school-math@3101c7d, MIT) and MATH
(hendrycks/math, MIT), without GSM8K's <<...>> annotations, and on the arithmetic generated below. Training is
deterministic.

It is BPE over raw text: no normalisation, no space added in front or removed, every digit a piece of its own, byte
pieces for characters that have none. SentencePiece usually writes a space as U+2581 and so confuses the two; here
pieces contain the space itself. The ids are laid out as in Qwen's vocabularies: 0 is '!', the ChatML special tokens
come last, and no text encodes to them.

   0      1 ...                                        V-4     V-3             V-2            V-1
  '!'    pieces by rank, then bytes <0x00>..<0xFF>    <unk>   <|endoftext|>   <|im_start|>   <|im_end|>
"""

import argparse
import gzip
import io
import itertools
import json
import random
import re
from collections.abc import Iterable, Iterator

from mathqwen.errors import UserError

ROLES = ('system', 'user', 'assistant')
SPACE = '\u2581'  # what SentencePiece writes for a space
FIELDS = ('question', 'answer', 'problem', 'solution', 'query', 'response')


def texts(path: str) -> Iterator[str]:
  """Lines to train on: of the known fields of a .jsonl[.gz] file, without <<...>>; of any other file, all lines.

  UserError: when the file cannot be read as UTF-8, or a row is not JSON.
  """
  opener = gzip.open if path.endswith('.gz') else open
  try:
    with opener(path, 'rt', encoding='utf-8') as lines:
      for number, line in enumerate(lines, 1):
        if '.jsonl' not in path:
          yield line.rstrip('\n')
          continue
        try:
          row = json.loads(line)
        except json.JSONDecodeError as error:
          raise UserError(f'{path}:{number}: not JSON ({error}); give JSON Lines or plain text') from None
        for field in FIELDS:
          if field in row:
            yield from re.sub(r'<<.*?>>', '', str(row[field])).split('\n')
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f'{path}: cannot be read ({error}); give JSON Lines or plain text in UTF-8') from None


def arithmetic(count: int, seed: int = 0) -> Iterator[str]:
  """`count` lines worded like arithmetic data sets: '12 + 7 = 19', 'What is 3 * 45?', 'The answer is 135.'"""
  rng = random.Random(seed)
  for _ in range(count):
    a = rng.randrange(10 ** rng.randint(1, 5))
    b = rng.randrange(10 ** rng.randint(1, 5))
    op = rng.choice('+-*')
    value = {'+': a + b, '-': a - b, '*': a * b}[op]
    forms = (
      f'{a} {op} {b} = {value}',
      f'{a}{op}{b}=',
      f'What is {a} {op} {b}?',
      f'Calculate {a} {op} {b}.',
      f'The answer is {value}.',
      f'#### {value}',
      f'{a}! / {b}.5 = {value}.0',
    )
    yield rng.choice(forms)


def train(sentences: Iterable[str], vocab_size: int) -> bytes:
  """The content of a tokenizer.model of `vocab_size` pieces, trained on the sentences."""
  import sentencepiece
  from sentencepiece import sentencepiece_model_pb2

  printable = ''.join(map(chr, range(0x21, 0x7F)))
  # SentencePiece below 0.2.3 aborts the process when a required character is in no sentence.
  each_character = [*printable, '0\n0', '0\t0']
  out = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=itertools.chain(sentences, each_character),
    model_writer=out,
    model_type='bpe',
    vocab_size=vocab_size,
    normalization_rule_name='identity',
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    split_digits=True,
    byte_fallback=True,
    character_coverage=0.9995,
    required_chars='\n\t' + printable,
    max_sentence_length=1 << 20,
    unk_id=0,
    pad_id=1,
    bos_id=2,
    eos_id=3,
    num_threads=1,
    minloglevel=1,
    pad_piece='<|endoftext|>',
    bos_piece='<|im_start|>',
    eos_piece='<|im_end|>',
  )
  return _as_qwen_orders(sentencepiece_model_pb2.ModelProto.FromString(out.getvalue()))


def _as_qwen_orders(model) -> bytes:
  """The model with real spaces in its pieces and with its ids in the order drawn at the top of this file."""
  kind = type(model).SentencePiece.Type
  order = {kind.NORMAL: 0, kind.BYTE: 1, kind.UNKNOWN: 2, kind.CONTROL: 3}
  pieces = sorted(model.pieces, key=lambda p: (p.piece != '!', order[p.type]))
  del model.pieces[:]
  for piece in pieces:
    if piece.type == kind.NORMAL:
      piece.piece = piece.piece.replace(SPACE, ' ')
    model.pieces.append(piece)
  model.normalizer_spec.escape_whitespaces = False
  spec = model.trainer_spec
  spec.unk_id = len(pieces) - 4
  spec.pad_id = len(pieces) - 3
  spec.bos_id = len(pieces) - 2
  spec.eos_id = len(pieces) - 1
  return model.SerializeToString(deterministic=True)


def main(args: list[str] | None = None) -> None:
  """The command line; see the top of this file."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--input', nargs='+', required=True, help='.jsonl[.gz] or text files')
  parser.add_argument('--vocab-size', type=int, default=1024)
  parser.add_argument('--output', required=True)
  options = parser.parse_args(args)
  sentences = [line for path in options.input for line in texts(path) if line]
  sentences += list(arithmetic(20_000))
  sentences += list(ROLES) * 10_000  # often enough that each role becomes one piece
  model = train(sentences, options.vocab_size)
  with open(options.output, 'wb') as file:
    file.write(model)


if __name__ == '__main__':
  main()
