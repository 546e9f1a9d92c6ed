"""Random faults over tiny training runs: each must end as if nothing had happened, or say what it had to repeat.

python tests/chaos.py --faults 300 --seed 1         a table of kinds and outcomes, and a line for each violation
python tests/chaos.py --seed 1 --case 17            that fault alone, and what the run said
python tests/chaos.py --faults 40 --kind 'bit flip'

After a fault the same command runs until it ends. Then parameters, moments, ledger and metrics must equal those of an
undisturbed run: to the bit, or to float32 rounding where the mesh or the number of micro-batches changed. Every folder
that looks like a checkpoint must be one, and there are no tracebacks, other statuses or files outside of the workdir.
The status is 1 when something was violated.

A fault is chosen by seed and number, but its moment depends on the machine: a case does not always repeat.
"""

import argparse
import collections
import functools
import json
import os
import pathlib
import shutil
import sys
import tempfile
import time
import traceback

from faults import runs

sys.path.insert(0, str(runs.ROOT))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
  """The arguments of the command."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--faults', type=int, default=40, help='how many; each kind comes equally often')
  parser.add_argument('--seed', type=int, default=1)
  parser.add_argument('--case', type=int, help='only this one of them')
  parser.add_argument('--kind', default='', help='only kinds whose name contains this')
  parser.add_argument('--jobs', type=int, default=len(os.sched_getaffinity(0)), help='faults at the same time')
  return parser.parse_args(argv)


def main() -> int:
  """Runs the faults. Returns the exit status."""
  args = parse()
  scratch = pathlib.Path(tempfile.mkdtemp(prefix='chaos-'))
  write_data(scratch / 'train.jsonl')
  runs.set_up(scratch)
  numbers = range(args.faults) if args.case is None else [args.case]
  begun = time.monotonic()
  workers = [runs.fork(functools.partial(work, args, scratch, numbers[i :: args.jobs])) for i in range(args.jobs)]
  for pid in workers:
    os.waitpid(pid, 0)
  results = [json.loads(line) for line in (scratch / 'results.jsonl').read_text().splitlines()]
  print(table(results))
  print(f'{len(results)} faults with seed {args.seed} in {(time.monotonic() - begun) / 60:.1f} minutes')
  wrong = [result for result in results if result['wrong']]
  if wrong or len(results) < len(numbers):
    print(f'{len(wrong)} violations, {len(numbers) - len(results)} faults without a result; see {scratch}')
    return 1
  shutil.rmtree(scratch)
  return 0


def write_data(file: pathlib.Path):
  """168 sums, about nine steps an epoch."""
  sums = [(a, b) for a in range(11, 32) for b in range(3, 11)]
  rows = [{'query': f'{a}+{b}=', 'response': str(a + b), 'group': 'sums'} for a, b in sums]
  file.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def work(args: argparse.Namespace, scratch: pathlib.Path, numbers: list[int]):
  """One after the other, the faults of these numbers. Appends a line for each to `results.jsonl`."""
  from faults import cases, kinds

  for owner, name in runs.places().values():
    getattr(owner, name)
  chosen = [name for name in kinds.KINDS if args.kind in name]
  for number in numbers:
    case = cases.Case(number, args.seed, scratch, scratch / 'cases' / str(number))
    case.kind = chosen[number % len(chosen)]
    begun = time.monotonic()
    try:
      kinds.KINDS[case.kind](case)
      case.finish()
    except Exception:
      case.wrong.append(f'the chaos command itself failed: {traceback.format_exc()}')
    (case.folder / 'said').write_text(case.said)
    report(args, case, time.monotonic() - begun)
    case.close()


def report(args: argparse.Namespace, case, seconds: float):
  """A line for the table, and one on the terminal when something was violated."""
  result = {name: getattr(case, name) for name in ('number', 'kind', 'what', 'statuses', 'outcome', 'wrong')}
  with open(case.scratch / 'results.jsonl', 'a') as file:
    file.write(json.dumps(result | {'seconds': round(seconds, 1)}) + '\n')
  kind = f' --kind {args.kind!r}' if args.kind else ''
  again = f'python tests/chaos.py --seed {args.seed} --case {case.number}{kind}'
  if case.wrong:
    print(f'{case.kind}: {case.what}: {"; ".join(case.wrong)} (statuses {case.statuses})\n  {again}', flush=True)
  if args.case is not None:
    print(f'{case.kind}: {case.what}: {case.outcome}, statuses {case.statuses}\n{case.said}', flush=True)


def table(results: list[dict]) -> str:
  """Kinds of faults and how many ended in which way."""
  outcomes = sorted({result['outcome'] for result in results})
  counts = collections.Counter((result['kind'], result['outcome']) for result in results)
  kinds = list(dict.fromkeys(result['kind'] for result in results))
  seconds = collections.Counter()
  for result in results:
    seconds[result['kind']] += result['seconds']
  rows = [['fault', *outcomes, 'seconds each']]
  for kind in sorted(kinds):
    number = sum(counts[kind, outcome] for outcome in outcomes)
    rows.append([kind, *(str(counts[kind, outcome] or '') for outcome in outcomes), f'{seconds[kind] / number:.1f}'])
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join('  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


if __name__ == '__main__':
  sys.exit(runs.go_on(main))
