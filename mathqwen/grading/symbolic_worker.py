"""The process in which answers are parsed as mathematics. Run by path, never imported: it must stay free of JAX.

One JSON object a line: in {"gold", "answer", "test"}, out {"equal"}; `test` is 'math-verify' or 'difference'.
It has no time limit of its own: whoever started it kills it, and it ends soon after whoever started it.
"""

import json
import os
import sys
import threading
import time

MEMORY_LIMIT = 4 * 2**30  # bytes; 9**9**9 would otherwise take the machine's memory before its time is up


def limit_memory():
  try:
    import resource
  except ImportError:  # not a POSIX system
    return
  resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, resource.getrlimit(resource.RLIMIT_AS)[1]))


def end_with(parent: int):
  """Of a parent that was killed: it cannot stop a comparison that takes for ever."""
  while os.getppid() == parent:
    time.sleep(1)
  os._exit(1)


def main():
  limit_memory()
  threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
  out = sys.stdout
  sys.stdout = sys.stderr  # what a parser prints must not be taken for an answer
  try:
    import math_verify
    import sympy
    from latex2sympy2_extended import NormalizationConfig
  except ImportError as error:
    print(json.dumps({'missing': str(error)}), file=out, flush=True)
    return
  config = [math_verify.LatexExtractionConfig(boxed_match_priority=0), math_verify.ExprExtractionConfig()]

  # As it is written: 20 km is a product of letters there, not 20.
  literally = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=False, nits=False, boxed='all', equations=False
  )
  literal = [math_verify.LatexExtractionConfig(boxed_match_priority=0, normalization_config=literally)]

  def parse(text, config=config, **options):
    return math_verify.parse(f'\\boxed{{{text}}}', config, parsing_timeout=None, **options)

  def same(gold, answer):
    return bool(math_verify.verify(parse(gold), parse(answer), timeout_seconds=None))

  def no_difference(gold, answer):
    parsed = [parse(text, literal, fallback_mode='no_fallback') for text in (gold, answer)]
    sides = [next((x for x in found if isinstance(x, sympy.Expr)), None) for found in parsed]
    return None not in sides and sympy.simplify(sides[0] - sides[1]) == 0

  tests = {'math-verify': same, 'difference': no_difference}
  print(json.dumps({'ready': True}), file=out, flush=True)
  for line in sys.stdin:
    ask = json.loads(line)
    print(json.dumps({'equal': bool(tests[ask['test']](ask['gold'], ask['answer']))}), file=out, flush=True)


if __name__ == '__main__':
  main()
