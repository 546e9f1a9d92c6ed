"""What `mathqwen data clean` costs by number of examples, and that the start of training costs the same for any number.

  python tests/cleaning/measure_scale.py clean [EXAMPLES ...] [--work DIR] [--data-dir DIR]
  python tests/cleaning/measure_scale.py start [EXAMPLES ...] [--work DIR]

Examples are word problems as long as those of GSM8K, every fiftieth a copy and every hundredth a near copy of an
earlier one. `start` runs `mathqwen train --dry-run` on shards of so many examples, up to its first batch.
CPU seconds are of all processes together, user and system: a busy machine changes them less than the time by the clock.
Memory is the largest sum of the processes' PSS, in which a shared page counts once.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

_SAMPLE_SECONDS = 0.2
_SYLLABLES = ('ba', 'co', 'di', 'fe', 'gu', 'ha', 'jo', 'ki', 'lin', 'mar', 'ne', 'po', 'ra', 'sto', 'ti', 'yu', 'zel')
_SENTENCES = (
  '{name} puts {a} {thing} beside the {place} every {day} and then carries {b} more of them to the {other}.',
  'On {day} the {place} near the old {other} sells {thing} at ${a} each, and {name} buys {b} of them for a {friend}.',
  'After that, {name} gives away {c} {thing} because the {friend} of the {place} asked for them before {day} at noon.',
  'A box at the {place} holds {a} {thing}, and {name} fills {b} boxes with help from one {friend} and a {other}.',
)
_STEPS = (
  '{name} has {a} * {b} = {ab} {thing} in all after the {day} at the {place}.',
  'Without the {c} that the {friend} took, {ab} - {c} = {left} of the {thing} remain beside the {other}.',
  'Adding those of the {other} gives {left} + {a} = {end} {thing}, which is what {name} counts.',
)


def words(count: int) -> list[str]:
  """Different words that look like English ones."""
  chosen = random.Random(1)
  found: dict[str, None] = {}
  while len(found) < count:
    found[''.join(chosen.choices(_SYLLABLES, k=chosen.choice((2, 2, 3))))] = None
  return list(found)


def problems(count: int, seed: int = 0) -> Iterator[dict]:
  """Word problems, about 230 characters each, with answers of about 240."""
  vocabulary = words(4000)
  chosen = random.Random(seed)
  kept: list[dict] = []
  for number in range(count):
    if kept and number % 50 == 0:
      yield chosen.choice(kept)
      continue
    if kept and number % 100 == 1:
      yield near_copy(chosen.choice(kept))
      continue
    row = problem(vocabulary, chosen)
    if number % 1000 == 7:
      kept.append(row)
    yield row


def problem(vocabulary: list[str], chosen: random.Random) -> dict:
  """One problem, with its answer."""
  fields: dict = {name: chosen.choice(vocabulary) for name in ('thing', 'place', 'day', 'other', 'friend')}
  fields['name'] = chosen.choice(vocabulary).title()
  a, b, c = chosen.randint(20, 900), chosen.randint(2, 60), chosen.randint(2, 39)
  fields |= {'a': a, 'b': b, 'c': c, 'ab': a * b, 'left': a * b - c, 'end': a * b - c + a}
  asked = [text.format(**fields) for text in chosen.sample(_SENTENCES, 2)]
  question = ' '.join([*asked, f'How many {fields["thing"]} does {fields["name"]} have in the end?'])
  answer = '\n'.join([*(text.format(**fields) for text in _STEPS), f'#### {fields["end"]}'])
  return {'question': question, 'answer': answer}


def near_copy(row: dict) -> dict:
  """The same problem with a word more."""
  return row | {'question': f'Today {row["question"]}'}


@dataclasses.dataclass(frozen=True)
class Cost:
  """What a command took."""

  seconds: float  # by the clock
  cpu_seconds: float  # of all its processes
  bytes: int  # the largest PSS of all its processes together


def measured(command: list[str], until: str | None = None) -> tuple[Cost, list[str]]:
  """(cost of a command, the lines of its standard output).

  until: what a line begins with after which no cost counts. Raises CalledProcessError when the command fails.
  """
  tree = _Tree()
  started = time.monotonic()
  process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  tree.start(process.pid)
  cost = None
  lines = []
  for line in process.stdout:
    lines.append(line)
    if until is not None and cost is None and line.startswith(until):
      cost = Cost(time.monotonic() - started, *tree.end())
  if process.wait():
    raise subprocess.CalledProcessError(process.returncode, command)
  return cost or Cost(time.monotonic() - started, *tree.end()), lines


class _Tree:
  """Samples of a process and its descendants. The last sample of each counts: its last moments may be missed."""

  def __init__(self):
    self._ended = threading.Event()
    self._cpu: dict[int, float] = {}  # process -> its seconds, user and system
    self._bytes = 0

  def start(self, root: int) -> None:
    self._thread = threading.Thread(target=self._watch, args=(root,))
    self._thread.start()

  def end(self) -> tuple[float, int]:
    """(CPU seconds of all, the largest sum of their PSS)."""
    self._ended.set()
    self._thread.join()
    return sum(self._cpu.values()), self._bytes

  def _watch(self, root: int) -> None:
    while True:
      ended = self._ended.wait(_SAMPLE_SECONDS)
      total = 0
      for process in _descendants(root):
        try:
          fields = pathlib.Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()
          self._cpu[process] = (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')
          rollup = pathlib.Path(f'/proc/{process}/smaps_rollup').read_text()
        except OSError:  # it has just ended
          continue
        total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith('Pss:')) * 1024
      self._bytes = max(self._bytes, total)
      if ended:
        return


def _descendants(root: int) -> list[int]:
  found = [root]
  for process in found:
    try:
      for task in pathlib.Path(f'/proc/{process}/task').iterdir():
        found += map(int, (task / 'children').read_text().split())
    except OSError:
      continue
  return found


def _mathqwen(*words: str) -> list[str]:
  return [sys.executable, '-m', 'mathqwen', *words]


def measure_clean(count: int, work: pathlib.Path, data_dir: str | None) -> None:
  """Prints what the cleaning of so many examples costs."""
  source = work / 'examples.jsonl'
  with open(source, 'w') as file:
    for row in problems(count):
      file.write(json.dumps(row) + '\n')
  command = _mathqwen('data', 'clean', 'gsm8k_small', '--out', str(work / 'text'), '--set', f'data.sources={source}')
  cost, lines = measured([*command, *(['--data-dir', data_dir] if data_dir else []), '--json'])
  result = json.loads(lines[-1])
  problems_compared = sum(found['problems'] for found in result['test_sets'].values())
  print(
    f'{count:,} examples of {source.stat().st_size / count:,.0f} bytes, compared with {problems_compared:,} test '
    f'problems: {result["rows"]:,} kept; {count / cost.cpu_seconds:,.0f} for each CPU second, at most '
    f'{cost.bytes / 2**20:,.0f} MiB ({cost.seconds:,.0f} s by the clock)',
    flush=True,
  )


def measure_start(count: int, work: pathlib.Path, data_dir: None) -> None:
  """Prints what training needs until its first batch, from shards of so many examples."""
  folder = work / 'shards'
  write_shards(folder, count)
  size = sum(path.stat().st_size for path in folder.iterdir())
  command = _mathqwen('train', 'gsm8k_small', '--init', 'random', '--dry-run', '--set', f'data.sources={folder}')
  first, _ = measured(command, until='row of ')
  whole, _ = measured(command)
  print(
    f'{count:,} examples in shards of {size / 2**20:,.0f} MiB: {first.cpu_seconds:.1f} CPU seconds to the first batch '
    f'({first.seconds:.0f} by the clock), at most {first.bytes / 2**20:,.0f} MiB; {whole.bytes / 2**20:,.0f} MiB with '
    'the compilation of the step',
    flush=True,
  )


def write_shards(folder: pathlib.Path, count: int) -> None:
  """Shards of so many examples of 150 to 350 tokens with different prompts; shuffled tokens of a few real ones."""
  import numpy as np

  from mathqwen.chat.chat_format import ChatFormat
  from mathqwen.data import shards
  from mathqwen.text.loading import load_tokenizer

  tokenizer = load_tokenizer()
  chat = ChatFormat()
  rows = [(row['question'], row['answer']) for row in problems(200)]
  texts = [[{'role': 'user', 'content': asked}, {'role': 'assistant', 'content': said}] for asked, said in rows]
  rendered = chat.template.render_batch([chat.conversation(turns) for turns in texts], tokenizer)
  examples = [(np.array(ids), np.array(mask)) for ids, mask in rendered]
  chosen = np.random.default_rng(0)
  with shards.Writer(folder, tokenizer, chat, seq_len=1024) as writer:
    for number in range(count):
      ids, mask = examples[number % len(examples)]
      ids = ids.copy()
      ids[6:12] = chosen.integers(300, 1000, 6)
      writer.add(ids, mask, f'train.jsonl:{number + 1}', 'generated')


def main() -> None:
  """Measures each number of examples."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('what', choices=('clean', 'start'))
  parser.add_argument('examples', nargs='*', type=int, default=[50_000, 200_000])
  parser.add_argument('--work', metavar='DIR', help='a folder with room: 1.6 KB for each example')
  parser.add_argument('--data-dir', metavar='DIR', help='a copy of the test sets that examples are compared with')
  args = parser.parse_args()
  measure = {'clean': measure_clean, 'start': measure_start}[args.what]
  for count in args.examples:
    work = pathlib.Path(tempfile.mkdtemp(dir=args.work))
    try:
      measure(count, work, args.data_dir)
    finally:
      shutil.rmtree(work)


if __name__ == '__main__':
  main()
