"""Mean tokens of texts in JSON Lines: where `ANSWER_TOKENS` and `PROMPT_TOKENS` of `planning/evaluation.py` are from.

  python tests/planning/measure_tokens.py TOKENIZER FIELD FILE

TOKENIZER is a directory, such as one with qwen.tiktoken. FIELD is `question` of GSM8K's test file (61.3), `problem` of
MATH's (68.7), or `response` of records such as evaluations leave: of GAIR-NLP/abel at 3a24ef2 to GSM8K (295.4), of
QwenLM/Qwen2.5-Math at a45202b to MATH (398.0).
"""

import sys

from mathqwen import files
from mathqwen.data import formats
from mathqwen.text.loading import load_tokenizer


def mean_tokens(tokenizer: str, field: str, path: str) -> tuple[float, int]:
  """(mean number of tokens, number of texts) of one field of the records of a file."""
  encode = load_tokenizer(tokenizer).encode
  counts = [len(encode(record[field])) for _, record in formats.records(files.path(path))]
  return sum(counts) / len(counts), len(counts)


if __name__ == '__main__':
  mean, count = mean_tokens(*sys.argv[1:])
  print(f'{mean:.1f} tokens on average, of {count:,} texts')
