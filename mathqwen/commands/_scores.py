"""How `evaluate` and `grade` print scores."""


def show(result: dict):
  """Prints one line for each benchmark of `result`, the JSON of `evaluate` and `grade`."""
  for name, scores in result['benchmarks'].items():
    print(
      f'{name}: {scores["correct"]} of {scores["n"]} right, {100 * scores["accuracy"]:.1f}% '
      f'(standard error {100 * scores["stderr"]:.1f}), {scores["unextractable"]} without an answer, '
      f'{scores["truncated"]} cut off; rule {scores["rule"]}, prompt {scores["prompt"]}'
    )
