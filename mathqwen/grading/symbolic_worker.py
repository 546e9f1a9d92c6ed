"""The process in which answers are parsed as mathematics. It is run by path and never imported, and is free of JAX.

It reads and writes one JSON object a line: in {"gold", "answer", "test", "seconds"}, out {"equal", "why"}. `test` is
'mathematics', 'math-verify' or 'difference'. `equal` is null where nothing was decided, for the reason `why`. The first
line of all is {"ready": true}, or {"missing": why} when math-verify cannot be imported.
After `seconds` of CPU time (not of the clock: a busy machine decides nothing) the system ends it by SIGPROF. It ends
soon after the process that started it does.
"""

import json
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable

MEMORY_LIMIT = 4 * 2**30  # bytes; otherwise 9**9**9 would fill the machine's memory before its time is up


def limit_memory() -> None:
  """Allows this process MEMORY_LIMIT of address space. Does nothing on systems without such a limit."""
  try:
    import resource
  except ImportError:  # not a POSIX system
    return
  resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, resource.getrlimit(resource.RLIMIT_AS)[1]))


def limit_cpu(seconds: float) -> None:
  """Ends this process by SIGPROF after so many seconds of its CPU time from now; 0: no more.

  No handler runs, so one long operation on integers ends as well. Does nothing where there is no such timer.
  """
  if hasattr(signal, 'setitimer'):
    signal.setitimer(signal.ITIMER_PROF, seconds)


def end_with(parent: int) -> None:
  """Ends this process once `parent` is gone: a parent that was killed cannot stop a comparison that never ends."""
  while os.getppid() == parent:
    time.sleep(1)
  os._exit(1)


def main() -> None:
  """Answers questions until standard input ends."""
  limit_memory()
  threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
  out = sys.stdout
  sys.stdout = sys.stderr  # what a parser prints must not be taken for a reply
  try:
    tests = comparisons()
  except ImportError as error:
    print(json.dumps({'missing': str(error)}), file=out, flush=True)
    return
  print(json.dumps({'ready': True}), file=out, flush=True)
  for line in sys.stdin:
    question = json.loads(line)
    compare = tests[question['test']]
    limit_cpu(question['seconds'])
    why = None
    try:
      equal = bool(compare(question['gold'], question['answer']))
    except MemoryError:
      equal, why = None, 'out of memory'
    except Exception as error:  # a fault of the parser; the same question would fail again
      equal, why = None, f'{type(error).__name__} in the comparison'
    limit_cpu(0)
    print(json.dumps({'equal': equal, 'why': why}), file=out, flush=True)


def comparisons() -> dict[str, Callable[[str, str], bool]]:
  """The tests by name: functions of (gold, answer). ImportError when math-verify or SymPy is missing."""
  import math_verify
  import sympy
  from latex2sympy2_extended import NormalizationConfig

  usual = [math_verify.LatexExtractionConfig(boxed_match_priority=0), math_verify.ExprExtractionConfig()]

  # Without math-verify's own normalisation: 20 km is a product of letters here, not 20.
  literally = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=False, nits=False, boxed='all', equations=False
  )
  literal = [math_verify.LatexExtractionConfig(boxed_match_priority=0, normalization_config=literally)]

  def parse(text, config=usual, **options):
    # math-verify finds the answer in a text; in a box, all of it is the answer. Its own time limits are signals.
    return math_verify.parse(f'\\boxed{{{text}}}', config, parsing_timeout=None, **options)

  def equal_by_math_verify(gold, answer):
    return math_verify.verify(parse(gold), parse(answer), timeout_seconds=None)

  def expression(text):
    parsed = parse(text, literal, fallback_mode='no_fallback')
    return next((candidate for candidate in parsed if isinstance(candidate, sympy.Expr)), None)

  def no_difference(gold, answer):
    gold_expression, answer_expression = expression(gold), expression(answer)
    if gold_expression is None or answer_expression is None:
      return False
    return sympy.simplify(gold_expression - answer_expression) == 0

  sys.path.insert(0, str(pathlib.Path(__file__).parent))
  try:
    import symbolic_parsing  # beside this file; these need SymPy and the parser alone
    import symbolic_sampling
  finally:
    del sys.path[0]

  def equal_mathematics(gold, answer):
    (wanted, lost), (got, also_lost) = (symbolic_parsing.read(text) for text in (gold, answer))
    if wanted is not None and got is not None:
      decided = symbolic_sampling.equal(wanted, got, answer)
      if decided is not None:
        return decided
    if lost or also_lost:
      return False  # math-verify would compare what is left of them; equal texts were found before
    return math_verify.verify(parse(gold), parse(answer), timeout_seconds=None)

  return {'mathematics': equal_mathematics, 'math-verify': equal_by_math_verify, 'difference': no_difference}


if __name__ == '__main__':
  main()
