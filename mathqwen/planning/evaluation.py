"""A row for each slice and benchmark: does the evaluation fit, what does a token cost, and how long does it take."""

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from mathqwen.errors import UserError, report
from mathqwen.hardware import chips
from mathqwen.inference import shapes
from mathqwen.planning import compiler

if TYPE_CHECKING:
  from mathqwen.config import Experiment
  from mathqwen.evals.tasks import Benchmark

# Mean tokens of published answers: of GAIRMath-Abel 7B to GSM8K, and of Qwen2.5-Math to MATH (400 answers that its
# repository holds). `python tests/planning/measure_tokens.py` counts them, with Qwen's tokenizer. For other benchmarks,
# every answer is taken to be the longest.
ANSWER_TOKENS = {'gsm8k': 295, 'math': 398, 'math500': 398}
PROMPT_TOKENS = 128  # of a question and its turns; the same command counts questions
ATTEMPTS = 4  # numbers of slots that are compiled to find the most
MARGIN = 0.97  # of HBM, that an estimate may fill
UNKNOWN = (
  'hbm_bytes_per_chip', 'moved_bytes_per_step', 'least_bytes_per_step', 'ratio', 'tokens_per_second', 'minutes',
  'chip_hours', 'price',
)  # fmt: skip

ASSUMPTIONS = """\
The programs are those that `evaluate` runs, with its mesh: the chips of a host hold one copy of the model.
GiB: weights, cache, prefilled prompts and the largest temporaries, on a chip. While a cache grows, its last size is
  there as well, and counts.
moved: what a chip reads from and writes to HBM for a token of each answer, summed over the instructions of the compiled
  program with its loops, padded to tiles. least: weights, keys and values once, divided by the chips; of an embedding
  that is not the head, nothing. ratio: moved, with what a call of the program adds, over least.
tokens/s: with all slots full, the longest of HBM, matrix products at the bf16 peak and ICI; serial: their sum. Neither
  counts latency, so a real step takes longer.
minutes: decoding, prefill, and moving prompts to their slots, without loading, compiling and the host's work. Answers
  have the mean length that --answer-tokens gives."""
HEADER = [
  'slice', 'benchmark', 'fits', 'GiB', 'of', 'slots (most)', 'positions', 'moved GB', 'least GB', 'ratio',
  'tokens/s (serial)', 'minutes (serial)', 'chip-hours', 'price',
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Asked:
  """What is asked, besides the benchmarks."""

  batch_size: int = 64
  dtype: str = 'bfloat16'
  cache_dtype: str | None = None  # None: dtype
  weights: str | None = None  # 'int8': how matrices and tables are held; None: dtype
  limit: int | None = None
  max_new_tokens: int | None = None  # None: the benchmark's
  answer_tokens: int | None = None  # mean; None: ANSWER_TOKENS
  prompt_tokens: int = PROMPT_TOKENS
  price: float | None = None  # of a chip-hour

  def __post_init__(self):
    for name, value in dataclasses.asdict(self).items():
      if isinstance(value, int | float) and value <= 0:
        raise UserError(f'--{name.replace("_", "-")} is {value}: give more than 0')


@dataclasses.dataclass(frozen=True)
class Work:
  """One benchmark, in numbers."""

  name: str
  problems: int
  prompt_tokens: int
  answer_tokens: int
  max_new_tokens: int

  @property
  def positions(self) -> int:
    """Of the cache while an answer is as long as it may be: what `generate` then needs."""
    return shapes.round_up(self.prompt_tokens + self.max_new_tokens - 1, 'tpu')


def work_of(benchmark: 'Benchmark', asked: Asked, longest: int) -> Work:
  """longest: positions of the model. UserError: when the number of problems is not known, or tokens do not fit."""
  problems = asked.limit if benchmark.size is None else min(benchmark.size, asked.limit or benchmark.size)
  if problems is None:
    raise UserError(f'{benchmark.name}: how many problems it has is not known here: give --limit N')
  room = longest - asked.prompt_tokens
  most = asked.max_new_tokens or benchmark.max_new_tokens
  if most > room:
    remedy = f'give at most --max-new-tokens {room}' if room > 0 else 'give fewer --prompt-tokens'
    raise UserError(
      f'{benchmark.name}: {most} new tokens after {asked.prompt_tokens} exceed the {longest} of the model: {remedy}'
    )
  mean = asked.answer_tokens or min(ANSWER_TOKENS.get(benchmark.name, most), most)
  if mean > most:
    raise UserError(f'--answer-tokens {mean} exceeds the {most} that an answer to {benchmark.name} may have')
  return Work(benchmark.name, problems, asked.prompt_tokens, mean, most)


def plan(
  experiment: 'Experiment', benchmarks: 'list[Benchmark]', topologies: list[str], asked: Asked
) -> dict[str, Any]:
  """Compiles for each slice and prints a table. Returns the JSON of `mathqwen plan --evaluate`.

  experiment: only its model counts.
  UserError: when a slice is unknown, the model cannot be split, a number is wrong, or the TPU compiler is not installed
  or fails. The table then has the rows before.
  """
  slices = [chips.slice_of(name) for name in topologies]
  works = [work_of(benchmark, asked, experiment.model.longest) for benchmark in benchmarks]
  compiler.check_installed()
  rows = []
  try:
    for where in slices:
      for work in works:
        rows.append(_row(experiment, work, where, asked))
  finally:
    if rows:
      print(_table(rows))
      print(ASSUMPTIONS)
  return {'topologies': rows, 'assumptions': ASSUMPTIONS}


def _row(experiment: 'Experiment', work: Work, where: chips.Slice, asked: Asked) -> dict[str, Any]:
  """The row of one slice and benchmark."""
  slots = {
    'rows': asked.batch_size,
    'positions': work.positions,
    'width': shapes.round_up(work.prompt_tokens, 'tpu'),
    'dtype': asked.dtype,
    'cache_dtype': asked.cache_dtype or asked.dtype,
    'weights': asked.weights,
  }
  row = {'topology': where.name, 'chips': where.chips, 'benchmark': work.name, 'fits': False}
  row |= dict.fromkeys(UNKNOWN) | slots | dataclasses.asdict(work) | {'hbm_capacity_bytes': where.chip.hbm_bytes}
  del row['name']
  host, hosts = _host(where)
  compiled = _compile(experiment, slots, host)
  if 'error' in compiled:
    row |= {'error': compiled['error'], 'compile_seconds': compiled['compile_seconds']}
    compiled = _compile(experiment, slots | {'rows': 1}, host)  # as many as there are shards
    if 'error' in compiled:
      return row | {'rows_that_fit': 0}
    return row | {'rows_that_fit': _fitting(experiment, slots, host, compiled, work)}
  most = _fitting(experiment, slots, host, compiled, work)
  return row | memory(compiled, work, host) | times(compiled, work, host, hosts, asked.price) | {'rows_that_fit': most}


def _compile(experiment: 'Experiment', slots: dict[str, Any], host: chips.Slice) -> dict[str, Any]:
  report(f'{host.name}: compiling {slots["rows"]} slots of {slots["positions"]} positions')
  compiled = compiler.compile_answers(experiment, slots, host)
  if 'error' in compiled:
    report(f'{host.name}: {compiled["error"]}')
  return compiled


def _host(where: chips.Slice) -> tuple[chips.Slice, int]:
  """(the slice of one host, how many hosts): each host evaluates its share of the problems with its own copy."""
  if where.hosts_per_slice == 1:
    return dataclasses.replace(where, count=1), where.count
  name = f'{where.chip.name}-{where.machine.chips * where.chip.cores}'
  return chips.slice_of(name), where.hosts_per_slice * where.count


def memory(compiled: dict[str, Any], work: Work, host: chips.Slice) -> dict[str, Any]:
  """What a chip holds, in bytes. compiled: of `answer_steps.compile_here`."""
  fixed, cache = _memory(compiled, work)
  devices = host.chip.devices
  return {
    'fits': (fixed + cache) * devices <= host.chip.hbm_bytes,
    'hbm_bytes_per_chip': (fixed + cache) * devices,
    'weights_bytes': compiled['memory']['prefill']['arguments'] * devices,
    'rows': compiled['rows'],
    'mesh': compiled['mesh'],
    'compile_seconds': compiled['compile_seconds'],
  }


def _memory(compiled: dict[str, Any], work: Work) -> tuple[int, int]:
  """Bytes on a device: (what does not grow with the slots, the cache in its new and in its last size)."""
  of = compiled['memory']
  weights = of['prefill']['arguments']
  fixed = weights + of['prefill']['outputs'] + max(one['temporaries'] for one in of.values())
  cache = of['decode']['arguments'] - weights
  return fixed, cache + cache * shapes.last_size(work.positions, 'tpu') // work.positions


def _fitting(
  experiment: 'Experiment', slots: dict[str, Any], host: chips.Slice, compiled: dict[str, Any], work: Work
) -> int:
  """The most slots that fit, compiled as well; at most one for each problem, because more would stay empty.

  compiled: with fewer slots, from which this estimates.
  """
  shards = compiled['mesh']['data'] * compiled['mesh']['fsdp']
  fixed, cache = _memory(compiled, work)
  room = MARGIN * host.chip.hbm_bytes / host.chip.devices - fixed
  rows = min(int(room * compiled['rows'] / cache), work.problems)
  for _ in range(ATTEMPTS):
    rows -= rows % shards
    if rows <= compiled['rows']:
      break
    tried = _compile(experiment, slots | {'rows': rows}, host)
    if 'error' not in tried and memory(tried, work, host)['fits']:
      return rows
    rows = rows * 9 // 10
  return compiled['rows'] if memory(compiled, work, host)['fits'] else 0


def times(
  compiled: dict[str, Any], work: Work, host: chips.Slice, hosts: int = 1, price: float | None = None
) -> dict[str, Any]:
  """How fast it can be, and what that costs. compiled: of `answer_steps.compile_here`; price: of a chip-hour."""
  rows = compiled['rows']
  moved = compiled['decode']['hbm_bytes'] * host.chip.devices
  least = compiled['read_bytes'] / host.chips
  # `decode` stops when some slots are free, which happens all the more often the more slots there are.
  steps_in_a_call = min(shapes.STEPS, max(1, shapes.ended_slots(rows) * work.answer_tokens / rows))
  bounds = {name: _bounds(compiled[name], host) for name in ('decode', 'call', 'prefill', 'insert')}
  problems = -(-work.problems // hosts)
  # Every slot is busy until none is left to ask; the last answers take as long as one answer.
  steps = work.answer_tokens * (problems / min(rows, problems) + 1)
  often = {
    'decode': steps,
    'call': steps / steps_in_a_call,
    'prefill': math.ceil(problems / compiled['prefill_rows']),
    'insert': problems,
  }
  found: dict[str, Any] = {
    'moved_bytes_per_step': moved,
    'moved_bytes_per_call': compiled['call']['hbm_bytes'] * host.chip.devices,
    'steps_in_a_call': steps_in_a_call,
    'least_bytes_per_step': least,
    'ratio': (moved + compiled['call']['hbm_bytes'] * host.chip.devices / steps_in_a_call) / least,
    'collective_bytes_per_step': compiled['decode']['collectives'] * host.chip.devices,
    'bounds_seconds': bounds['decode'],
  }
  for suffix, combine in (('', max), ('_serial', sum)):
    seconds = {name: combine(bounds[name].values()) for name in bounds}
    found[f'tokens_per_second{suffix}'] = hosts * rows / (seconds['decode'] + seconds['call'] / steps_in_a_call)
    found[f'minutes{suffix}'] = sum(often[name] * seconds[name] for name in often) / 60
  found['chip_hours'] = found['minutes'] / 60 * host.chips * hosts
  found['price'] = None if price is None else found['chip_hours'] * price
  return found


def _bounds(program: dict[str, int], host: chips.Slice) -> dict[str, float]:
  """Seconds by each resource alone."""
  chip = host.chip
  return {
    'compute': program['flops'] / (host.chips * chip.flops),
    'hbm': program['hbm_bytes'] / chip.hbm_bandwidth * chip.devices,
    'ici': program['collectives'] / max(host.ici_bytes_per_second, 1) * chip.devices,
  }


def _table(rows: list[dict[str, Any]]) -> str:
  """Markdown."""
  lines = [HEADER, ['---'] * len(HEADER), *map(_cells, rows)]
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def _cells(row: dict[str, Any]) -> list[str]:
  slots = f'{row["rows"]} ({row["rows_that_fit"]})'
  first = [row['topology'], row['benchmark']]
  capacity = f'{row["hbm_capacity_bytes"] / 2**30:.1f}'
  if row['minutes'] is None:
    return [*first, 'no', '-', capacity, slots, str(row['positions']), *['-'] * 6, row['error']]
  return [
    *first,
    'yes' if row['fits'] else 'no',
    f'{row["hbm_bytes_per_chip"] / 2**30:.1f}',
    capacity,
    slots,
    str(row['positions']),
    f'{row["moved_bytes_per_step"] / 1e9:.2f}',
    f'{row["least_bytes_per_step"] / 1e9:.2f}',
    f'{row["ratio"]:.2f}',
    f'{row["tokens_per_second"]:,.0f} ({row["tokens_per_second_serial"]:,.0f})',
    f'{row["minutes"]:.1f} ({row["minutes_serial"]:.1f})',
    f'{row["chip_hours"]:.2f}',
    '-' if row['price'] is None else f'{row["price"]:.2f}',
  ]
