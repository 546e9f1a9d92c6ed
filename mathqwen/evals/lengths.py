"""How long answers are, and how accuracy depends on it."""

from collections.abc import Collection


def summarise(records: Collection[dict]) -> dict | None:
  """Accuracy by length, and mean lengths of right and wrong answers, in tokens; None where no record has a length.

  `bins`: from 2**i to below 2**(i + 1) tokens. `uncounted`: records without a length, which are in no bin and no mean.
  `thinking` and `answer` are means over the records that say how much of the response is thinking, or None.
  """
  counted = [record for record in records if _is_count(record.get('tokens'))]
  if not counted:
    return None
  bins: dict[int, list[dict]] = {}
  for record in counted:
    bins.setdefault(record['tokens'].bit_length(), []).append(record)
  return {
    'unit': 'tokens',
    'uncounted': len(records) - len(counted),
    'bins': [_bin(bits, bins[bits]) for bits in sorted(bins)],
    'mean': {
      'right': _means([record for record in counted if record['correct']]),
      'wrong': _means([record for record in counted if not record['correct']]),
    },
  }


def _bin(bits: int, records: list[dict]) -> dict:
  correct = sum(record['correct'] for record in records)
  edges = {'from': 2 ** (bits - 1) if bits else 0, 'below': 2**bits}
  return edges | {'n': len(records), 'correct': correct, 'accuracy': correct / len(records)}


def _means(records: list[dict]) -> dict:
  split = [record for record in records if _is_count(record.get('thinking_tokens'))]
  return {
    'n': len(records),
    'tokens': _mean([record['tokens'] for record in records]),
    'thinking': _mean([record['thinking_tokens'] for record in split]),
    'answer': _mean([record['tokens'] - record['thinking_tokens'] for record in split]),
  }


def _mean(counts: list[int]) -> float | None:
  return sum(counts) / len(counts) if counts else None


def _is_count(value: object) -> bool:
  return type(value) is int and value >= 0
