"""Examples of short sums, and their ids with the packaged tokenizer."""

from mathqwen.data import encoding
from mathqwen.data.examples import Example
from mathqwen.text.loading import load_tokenizer

T = 64  # positions of a row


def example(index, question, solution, messages=None):
  return Example(
    id=f'x/{index}',
    question=question,
    solution=solution,
    answer='',
    extra={},
    messages=messages,
    where=f'x.jsonl:{index + 1}',
  )


def sums(count, start=0):
  return [example(i, f'{i} + {i * i} =', f'{"so " * (i % 7)}it is {i + i * i}!') for i in range(start, start + count)]


def encode(examples, seq_len=T, **kwargs):
  return encoding.encode(examples, load_tokenizer(), seq_len, **kwargs)[0]
