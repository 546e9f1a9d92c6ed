"""How `evaluate` and `grade` print scores."""


def show(result: dict) -> None:
  """Prints one line for each benchmark of `result`, the JSON of `evaluate` and `grade`."""
  for name, scores in result['benchmarks'].items():
    print(f'{name}: {_score_line(scores)}')
    if 'against' in scores:
      print(f'{name}: {_against_line(scores)}')


def _against_line(scores: dict) -> str:
  """How many problems the training data hold, by kind, and the accuracy without them."""
  found = scores['against']
  kinds = ', '.join(f'{kind} {count:,}' for kind, count in found['kinds'].items()) or 'no kind of overlap'
  rest = found['without']
  score = f'without them {_share_right(rest)}' if rest['n'] else 'none is left'
  problems = scores.get('problems', scores['n'])
  return f'{found["marked"]:,} of {problems:,} problems are in {", ".join(found["data"])} ({kinds}); {score}'


def _score_line(scores: dict) -> str:
  """Leaves out what records of other programs may lack: how many answers were cut off, and the prompt."""
  undecided = f', {count} undecided' if (count := scores.get('verdicts', {}).get('undecided')) else ''
  truncated = '' if scores['truncated'] is None else f', {scores["truncated"]} cut off'
  if 'thinking_cut' in scores:
    truncated += f', thinking of {scores["thinking_cut"]} closed at its budget'
  prompt = '' if scores['prompt'] is None else f', prompt {scores["prompt"]}'
  return (
    f'{_share_right(scores)}, {scores["unextractable"]} without an answer{undecided}{truncated}; '
    f'rule {scores["rule"]}{prompt}{_sampled(scores)}'
  )


def _share_right(scores: dict) -> str:
  return (
    f'{scores["correct"]} of {scores["n"]} right, {100 * scores["accuracy"]:.1f}% '
    f'(standard error {100 * scores["stderr"]:.1f})'
  )


def _sampled(scores: dict) -> str:
  """`; 500 problems, avg@16 60.1% (57.0 to 63.1), pass@16 ..., maj@16 ...`; '' for one answer to each problem."""
  from mathqwen.evals.samples import SHOWN_METRICS

  samples = scores.get('samples', 1)
  if samples == 1:
    return ''
  parts = []
  for metric in SHOWN_METRICS:
    low, high = scores['intervals95'][metric][str(samples)]
    share = scores[metric][str(samples)]
    parts.append(f'{metric.partition("_at_")[0]}@{samples} {100 * share:.1f}% ({100 * low:.1f} to {100 * high:.1f})')
  return f'; {scores["problems"]} problems, {", ".join(parts)}'
