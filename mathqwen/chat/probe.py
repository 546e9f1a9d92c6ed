"""Tries a chat template in a process of its own, with limits on time and memory, before it runs in this one.

  python -m mathqwen.chat.probe < TEMPLATE

`engine.py` limits steps and sizes, and the compiler of Jinja and Python's own functions have no limits: a template that
takes too long there takes only the process of the probe with it.
"""

import contextlib
import functools
import os
import pathlib
import subprocess
import sys

from mathqwen.errors import UserError

SECONDS = 3  # of processor time, so a busy machine changes no verdict
BYTES = 1_000_000_000

# Conversations as people have them. A template may refuse any of them: only time and memory count.
_QUESTION = {'role': 'user', 'content': '1 + 1 ='}
_ANSWER = {'role': 'assistant', 'content': '<think>\nx\n</think>\n\n2'}
_CONVERSATIONS = (
  [_QUESTION],
  [{'role': 'system', 'content': 'Reason step by step.'}, _QUESTION, _ANSWER],
  [_QUESTION, _ANSWER] * 20,
)


@functools.lru_cache(maxsize=64)
def try_out(source: str, name: str) -> None:
  """UserError: when the text is not a template, or takes too much time or memory."""
  package = str(pathlib.Path(__file__).parents[2])
  environment = os.environ | {'PYTHONPATH': os.pathsep.join([package, os.environ.get('PYTHONPATH', '')])}
  done = subprocess.run(
    [sys.executable, '-m', 'mathqwen.chat.probe'],
    input=source.encode(errors='replace'),
    capture_output=True,
    env=environment,
  )
  if done.returncode == 0:
    return
  told = done.stdout.decode(errors='replace').strip()
  if done.returncode > 0 and not told:
    raise RuntimeError(f'the probe of a chat template failed: {done.stderr.decode(errors="replace")[-2000:]}')
  # Killed by a signal: one of the limits.
  limits = f'it takes more than {SECONDS} seconds or {BYTES / 1e9:.0f} GB for a few short conversations'
  raise UserError(f'{name}: not a chat template that can be used: {told or limits}; take another, such as chatml')


def _limit() -> None:
  try:
    import resource
  except ImportError:  # not on Windows
    return
  for kind, limit in ((resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_AS, BYTES), (resource.RLIMIT_CORE, 0)):
    # macOS takes no limit on memory, and where a lower limit is in force, that one stays.
    with contextlib.suppress(ValueError, OSError):
      resource.setrlimit(kind, (limit, limit))


def main() -> int:
  """0 when the template on standard input can be used; otherwise standard output says why not, if that is known."""
  _limit()
  source = sys.stdin.buffer.read(10_000_000).decode(errors='replace')
  from mathqwen.chat import rendering
  from mathqwen.chat.traced import LimitError

  try:
    engine = rendering.compiled(source, '2000-01-01')
    for messages in _CONVERSATIONS:
      for asked in (False, True):
        try:
          engine.render(messages, {'bos_token': '<s>', 'eos_token': '</s>'}, asked)
        except (MemoryError, LimitError) as error:
          print(rendering.words(error))
          return 1
        except Exception:
          pass  # it refuses this one, which `Session.text` tells when it comes up
  except UserError as error:
    print(error)
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(main())
