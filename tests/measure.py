"""Measures this machine and writes the results into the table of tests/README.md, each with its machine and date.

  bash launch/local/measure.sh                 the parts that take minutes
  bash launch/local/measure.sh train decode    these parts; the other rows of the table stay as they are
  bash launch/local/measure.sh --list          all parts, with their commands

The machine should be quiet: every ratio compares two programs that run by turns, but a busy neighbour still adds noise.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / 'tests' / 'README.md'
START, END = '<!-- measured: start -->', '<!-- measured: end -->'
HEADER = '| part | what | figure | command | measured on |\n|---|---|---|---|---|\n'


@dataclasses.dataclass(frozen=True)
class Part:
  what: str  # what the figure is
  command: str  # as a user types it in the root of the repository, in the environment that has mathqwen
  figure: Callable[[str], str]  # from the command's standard output to the cell of the table
  long: bool = False  # takes more than some minutes: only measured when named


def last_json(output: str) -> dict:
  """The JSON object that `--json` makes the last line of standard output."""
  return json.loads(output.strip().splitlines()[-1])


def over_torch(output: str) -> str:
  """Tokens per second of ours and of torch, from `mathqwen bench ... --torch --json`."""
  found = last_json(output)
  ours, theirs = found['tokens_per_second'], found['torch']['tokens_per_second']
  return f'{found["ratio"]:.2f} times ({ours:,.0f} and {theirs:,.0f} tokens/s)'


def over_static(output: str) -> str:
  """Continuous batching over batches that wait for their longest answer, from `mathqwen bench decode --long-tail`."""
  found = last_json(output)
  ours, static = found['tokens_per_second'], found['static']['tokens_per_second']
  return f'{found["ratio"]:.2f} times ({ours:,.0f} and {static:,.0f} tokens/s)'


def demo_accuracy(output: str) -> str:
  """Accuracy of the demo's model, in all and on the two groups it learns best, with the time taken."""
  found = last_json(output)
  scores = found['after']['benchmarks']['arithmetic']
  groups = {name: scores['groups'][name] for name in ('add_sub_10', 'add_sub_100')}
  listed = ', '.join(f'{name} {100 * group["accuracy"]:.1f}% of {group["n"]}' for name, group in groups.items())
  return f'{100 * scores["accuracy"]:.1f}% of {scores["n"]}; {listed}; {found["seconds"]:.0f} s'


def packing_figures(output: str) -> str:
  """Share of positions that hold a token, and tokens per CPU second, of each source of a config."""
  sources = last_json(output)['sources']
  return '; '.join(
    f'{name}: {100 * found["packing_efficiency"]:.2f}%, {found["tokens_per_cpu_second"]:,.0f} tokens per CPU second'
    for name, found in sources.items()
  )


def plan_figures(output: str) -> str:
  """GiB of a chip, at the peak, and what the slice has."""
  rows = last_json(output)['topologies']
  return '; '.join(
    f'{row["topology"]} {row["peak_bytes_per_chip"] / 2**30:.1f} of {row["hbm_capacity_bytes"] / 2**30:.0f} GiB'
    for row in rows
  )


def printed(output: str) -> str:
  """The lines that a measuring script prints."""
  return '<br>'.join(output.strip().splitlines())


PARTS = {
  'demo': Part(
    'held-out arithmetic after the demo, from random weights',
    'mathqwen demo --workdir WORK/demo --json',
    demo_accuracy,
  ),
  'packing': Part(
    'packing at 1,024 tokens and the input pipeline, with the tokenizer of this package',
    'mathqwen data inspect gsm8k_small --set data.sources=gsm8k,math --json',
    packing_figures,
  ),
  'train': Part(
    'training step in float32: 8 layers, D 512, V 32,000, 2 x 1,024 tokens, over transformers and torch',
    'mathqwen bench train --torch --json',
    over_torch,
  ),
  'decode': Part(
    'greedy decoding of the same model, 8 prompts of 128 tokens and 128 new ones, over transformers.generate',
    'mathqwen bench decode --torch --json',
    over_torch,
  ),
  'long-tail': Part(
    'answers as long as those of GSM8K in 8 slots, over batches that wait for their longest answer',
    'mathqwen bench decode --long-tail 256 --steps 3 --json',
    over_static,
    long=True,
  ),
  'conversion': Part(
    'a conversion of 1 GB, over reading and writing the same bytes with safetensors',
    'python tests/hf/measure_conversion.py',
    printed,
  ),
  'batching': Part(
    'answers that differ between one at a time and 128 at a time, random weights',
    'python tests/inference/measure_batching.py',
    printed,
  ),
  'grading': Part(
    'CPU seconds to grade the 5,000 problems of MATH, and verdicts that depend on the load of the machine',
    'python tests/grading/measure_grading.py data',
    printed,
    long=True,  # and MATH has to be the user's own copy
  ),
  'saving': Part(
    'saving a model of 100 million parameters, with moments and checksums, at the default interval',
    'python tests/storage/measure_saving.py',
    printed,
  ),
  'panels': Part(
    'products of few rows with packed weights (`inference/cpu.py`), over plain ones',
    'python tests/inference/test_cpu.py',
    printed,
  ),
  'linear': Part(
    "loss and gradient of a small model: JAX's own derivative of a product, over ours",
    'python tests/model/test_layers.py',
    printed,
  ),
  'flat': Part(
    'memory, open handles and threads of a long run with evaluations and checkpoints',
    'python tests/training/measure_flat.py',
    printed,
  ),
  'clean': Part(
    'cleaning of generated word problems as long as those of GSM8K, by their number',
    'python tests/cleaning/measure_scale.py clean 200000 1000000',
    printed,
    long=True,
  ),
  'start': Part(
    'start of training on shards, by the number of their examples',
    'python tests/cleaning/measure_scale.py start 50000 5000000',
    printed,
    long=True,
  ),
  'plan': Part(
    'memory of a Qwen2.5-7B training step per TPU chip at the peak, as the TPU compiler says',
    'mathqwen plan qwen2_5_7b --topology v5e-16 --topology v5p-32 --topology v6e-16 --json',
    plan_figures,
    long=True,
  ),
  'plan-14b': Part(
    'the same of the 14B of the paper, from 16 to 256 chips',
    'mathqwen plan math_qwen_14b --topology v5p-32 --topology v5p-128 --topology v5p-512 --json',
    plan_figures,
    long=True,
  ),
}


def machine() -> str:
  """Processor, cores, versions and today's date."""
  model = platform.machine()
  cpuinfo = pathlib.Path('/proc/cpuinfo')
  flags = ''
  if cpuinfo.exists():
    lines = dict(line.split(':', 1) for line in cpuinfo.read_text().splitlines() if ':' in line)
    fields = {name.strip(): value.strip() for name, value in lines.items()}
    model = fields.get('model name', model)
    flags = ' with AMX' if 'amx_tile' in fields.get('flags', '') else ''
  versions = ', '.join(f'{name} {importlib.metadata.version(name)}' for name in ('jax', 'torch', 'transformers'))
  today = datetime.date.today().isoformat()
  return f'{model}{flags}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}; {today}'


def run(part: Part, work: str, data_dir: str | None) -> str:
  """The figure of one part. Raises CalledProcessError when its command fails."""
  words = shlex.split(part.command.replace('WORK', work))
  program = words[0]
  if program == 'mathqwen':
    words[:1] = [sys.executable, '-m', 'mathqwen']
  else:
    words[0] = sys.executable
  if data_dir and (' data inspect ' in part.command or 'measure_scale.py clean' in part.command):
    words += ['--data-dir', data_dir]
  elif data_dir and words[-1] == 'data':
    words[-1] = data_dir
  # PYTHONPATH: scripts below tests/ then import the checkout they stand in.
  environment = os.environ | {'PYTHONPATH': str(ROOT)}
  done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, env=environment)
  return part.figure(done.stdout)


def write(found: dict[str, str]):
  """Replaces the rows of the parts that were measured; the others stay, in the order of PARTS."""
  text = README.read_text()
  before, rest = text.split(START)
  table, after = rest.split(END)
  rows = {}
  for line in table.splitlines():
    name = line.strip('|').split('|')[0].strip()
    if name in PARTS:
      rows[name] = line
  for name, figure in found.items():
    part = PARTS[name]
    command = part.command.replace('WORK/', '')
    rows[name] = f'| {name} | {part.what} | {figure} | `{command}` | {machine()} |'
  body = ''.join(f'{rows[name]}\n' for name in PARTS if name in rows)
  README.write_text(f'{before}{START}\n{HEADER}{body}{END}{after}')


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('parts', nargs='*', metavar='PART', help=f'of {", ".join(PARTS)} (default: those of minutes)')
  parser.add_argument('--list', action='store_true', help='show the parts and their commands; measure nothing')
  parser.add_argument(
    '--data-dir', metavar='DIR', help='a local copy of GSM8K and MATH, for `packing`, `clean` and `grading`'
  )
  args = parser.parse_args()
  if args.list:
    for name, part in PARTS.items():
      print(f'{name}: {part.what}\n  {part.command}{"  (long)" if part.long else ""}')
    return
  if unknown := [name for name in args.parts if name not in PARTS]:
    parser.error(f'no part {unknown[0]!r}: known are {", ".join(PARTS)}')
  data_dir = args.data_dir and os.path.abspath(args.data_dir)
  with tempfile.TemporaryDirectory() as work:
    for name in args.parts or [name for name, part in PARTS.items() if not part.long]:
      print(f'measuring {name}: {PARTS[name].command}', file=sys.stderr)
      figure = run(PARTS[name], work, data_dir)
      print(f'{name}: {figure}')
      write({name: figure})  # each at once: what was measured stays when a later part fails


if __name__ == '__main__':
  main()
