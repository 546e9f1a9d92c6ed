"""What a model is asked: which problems of a benchmark, in which form, with which decoding, graded by which rule.

Ask(limit=100, prompt='abel')      100 problems of each benchmark, asked and graded as GAIRMath-Abel was
prepare_benchmark(...)             one benchmark: its problems are read, its prompts made and checked
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from mathqwen.errors import UserError, report
from mathqwen.evals import asked, prompts, samples
from mathqwen.evals.against import Overlap, compare
from mathqwen.evals.asked import AskedModel
from mathqwen.evals.tasks import Benchmark, PromptSettings
from mathqwen.grading import grade as graders
from mathqwen.grading import values
from mathqwen.inference.sampling import Sampling, check_seed

if TYPE_CHECKING:
  from mathqwen.inference.model import Model

# The fields of Decoding that the model's `generate_ids` takes.
DRAWN = ('temperature', 'top_p', 'top_k', 'seed', 'cache_dtype')
_MAX_SAMPLES = 10_000  # the prompts of all samples are listed before the first answer is generated


def check_positive(**counts: int | None) -> None:
  """UserError: when one of the counts is below 1. None is fine."""
  for what, value in counts.items():
    if value is not None and value < 1:
      raise UserError(f'{what} is {value}; it must be 1 or more')


@dataclasses.dataclass(frozen=True)
class Decoding:
  """How a model of ours generates its answers; the defaults are greedy. UserError: when they contradict each other."""

  samples: int = 1  # answers to each problem
  temperature: float = 0.0
  top_p: float = 1.0
  top_k: int = 0
  seed: int = 0  # each sample of each problem has a random stream of its own
  cache_dtype: str | None = None  # of keys and values; None: that of the model

  def __post_init__(self):
    if not 1 <= self.samples <= _MAX_SAMPLES:
      raise UserError(f'samples is {self.samples}; it must be from 1 to {_MAX_SAMPLES:,}')
    if self.samples > 1 and self.temperature == 0:
      raise UserError(f'{self.samples} samples at temperature 0 are all the same; set a temperature, such as 0.7')
    if self.temperature == 0 and (self.top_p, self.top_k) != (1.0, 0):
      raise UserError('top_p and top_k have no effect at temperature 0; set a temperature, such as 0.7')
    Sampling(self.temperature, self.top_p, self.top_k)  # checks the ranges
    check_seed(self.seed)


GREEDY = Decoding()


@dataclasses.dataclass(frozen=True)
class Ask:
  """What a model is asked, and how its answers are graded. The defaults are those of each benchmark."""

  data_dir: str | os.PathLike | None = None  # a local copy of the data sets
  limit: int | None = None  # ask only so many problems of each benchmark, drawn by `limit_seed`
  prompt: str | None = None  # a name in prompts.PROMPTS
  rule: str | None = None  # a name in grade.RULES; None: the prompt's rule for this benchmark, else the benchmark's
  max_new_tokens: int | None = None  # None: chosen like the rule; fewer when the model has too few positions
  decoding: Decoding = GREEDY
  columns: tuple[str, ...] = ()  # of files of the user's: FIELD=COLUMN each, as in `data.columns`
  max_thinking_tokens: int | None = None  # of an answer, at which its thinking is closed; None: no budget
  limit_seed: int = 0  # of the subset that `limit` draws: the same for each model and run
  against: tuple[str, ...] = ()  # training data whose problems are marked, see `against.compare`

  def __post_init__(self):
    check_positive(limit=self.limit, max_new_tokens=self.max_new_tokens, max_thinking_tokens=self.max_thinking_tokens)
    check_seed(self.limit_seed)
    if self.limit_seed and self.limit is None:
      raise UserError(f'limit_seed is {self.limit_seed}, and no limit is given, whose problems it draws')


ASK = Ask()


@dataclasses.dataclass(frozen=True)
class PreparedBenchmark:
  """One benchmark, ready to be asked."""

  benchmark: Benchmark
  examples: list  # of data.examples.Example, each as often as there are samples
  prompts: list  # one for each example: token ids, or the part of a request that a served model is sent
  settings: dict  # two runs with the same settings are the same run; kept in settings.json
  stop: tuple[str, ...] = ()  # texts that end an answer, besides the model's stop tokens
  overlap: Overlap | None = None  # with training data, where it is asked for

  @property
  def name(self) -> str:
    """Of the benchmark, its directory and its scores."""
    return self.benchmark.name

  def record(
    self, index: int, *, prompt: str, response: str, tokens: int | None, truncated: bool, **more: object
  ) -> dict:
    """The graded record of the answer to example `index`. `tokens`: of the answer; `more`: further fields."""
    example = self.examples[index]
    record = {
      'id': example.id,
      'benchmark': self.benchmark.name,
      'question': example.question,
      'prompt': prompt,
      'response': response,
      'gold': example.answer,
      'tokens': tokens,
      'truncated': truncated,
      'prompt_name': self.settings['prompt'],
      'template': self.settings['template'],
      'system_prompt': self.settings['system_prompt'],
      'extra': example.extra,
      **more,
    }
    return graders.judged(record, self.settings['rule'])


def prepare_benchmark(model: AskedModel, benchmark: Benchmark, ask: Ask, make_prompts: Callable) -> PreparedBenchmark:
  """Reads the problems and makes their prompts with `make_prompts(prompts.Prompt, examples)`.

  UserError: for unknown names, missing or incomplete data, and gold answers that the rule cannot compare.
  """
  from mathqwen.data import catalog, sources  # late: grading stored answers needs no data set

  prompt_name = ask.prompt or benchmark.prompt
  prompt = prompts.get(prompt_name)
  special = benchmark.by_prompt.get(prompt_name, PromptSettings())
  rule = ask.rule or special.rule or benchmark.rule
  graders.get(rule)

  if ask.columns and catalog.of_source(benchmark.source):
    raise UserError(f'--map: {benchmark.name} has its own columns; it is for a file of yours')
  examples, left_out = sources.load(benchmark.source, benchmark.split, ask.data_dir, strict=True, columns=ask.columns)
  for kind, line in zip(left_out.counts, left_out.lines(), strict=True):
    report(f'{benchmark.name}: {line}' + ('; each is asked, as published' if kind == 'duplicate' else ''))
  _check_golds(benchmark, rule, examples)
  examples = samples.expand(subset(examples, ask.limit, ask.limit_seed), ask.decoding.samples)

  settings = {
    'model': model.name,
    'dtype': model.precision,
    'benchmark': benchmark.name,
    'prompt': prompt_name,
    **asked.of(model, prompt_name),
    'rule': rule,
    'max_new_tokens': ask.max_new_tokens or special.max_new_tokens or benchmark.max_new_tokens,
    'limit': ask.limit,
    'limit_seed': None if ask.limit is None else ask.limit_seed,
    **dataclasses.asdict(ask.decoding),
    'max_thinking_tokens': ask.max_thinking_tokens,
  }
  return PreparedBenchmark(benchmark, examples, make_prompts(prompt, examples), settings, prompt.stop)


def subset(examples: list, limit: int | None, seed: int) -> list:
  """`limit` of the examples, drawn at random, in their order; all for None. A larger limit draws these and others.

  The draw depends on the questions only: neither on the order of the file nor on what else is asked.
  """
  if limit is None:
    return examples

  def place(example):
    return hashlib.sha256(f'{seed}\n{example.question}'.encode('utf-8', 'backslashreplace')).digest(), example.id

  drawn = {example.id for example in sorted(examples, key=place)[:limit]}
  return [example for example in examples if example.id in drawn]


def _check_golds(benchmark: Benchmark, rule: str, examples: list) -> None:
  """UserError: when a rule meets a gold answer that it cannot read. It would count every answer to it as wrong."""
  grader = graders.get(rule)
  bad = [example for example in examples if graders.readable(example.answer, grader) is None]
  if bad:
    raise UserError(
      f'{benchmark.name}: {len(bad)} gold answers are not numbers, such as {bad[0].answer!r} ({bad[0].where}): correct '
      'them, or grade by another --rule'
    )
  for example in examples:
    tolerance = example.extra.get('tolerance')
    if tolerance is not None and values.value(str(tolerance).rstrip('%')) is None:
      raise UserError(f'{benchmark.name}: {example.where}: tolerance {tolerance!r} is no number, such as 0.1 or 1%')


def compared(prepared: list[PreparedBenchmark], ask: Ask) -> list[PreparedBenchmark]:
  """The benchmarks with what `ask.against` holds of their problems. UserError: when that cannot be read."""
  if not ask.against:
    return prepared
  questions = [example.question for benchmark in prepared for example in benchmark.examples]
  overlap = compare(questions, ask.against, ask.data_dir)
  return [dataclasses.replace(benchmark, overlap=overlap) for benchmark in prepared]


def prepare_for_model(model: 'Model', benchmark: Benchmark, ask: Ask) -> PreparedBenchmark:
  """`prepare_benchmark` with prompts as token ids, and no more new tokens than the model has positions for.

  UserError: when the longest prompt leaves no room, or less than the user asked for.
  """
  if model.tokenizer is None:
    raise UserError(f'{model.name} has no tokenizer files: copy those of its model there')

  def make_prompts(prompt, examples):
    return prompts.ids(prompt, examples, model.tokenizer, model.chat)

  prepared = prepare_benchmark(model, benchmark, ask, make_prompts)
  lengths = [len(ids) for ids in prepared.prompts]
  longest = lengths.index(max(lengths))
  positions = model.config.longest
  room = positions - lengths[longest]
  wanted = prepared.settings['max_new_tokens']

  where = f'{benchmark.name}: the prompt of {prepared.examples[longest].id} has {lengths[longest]} tokens'
  if room < 1:
    raise UserError(f'{where}, the model has {positions} positions; use a model with more')
  if ask.max_thinking_tokens is not None:
    model.check_budget(ask.max_thinking_tokens, min(wanted, room))
  if wanted <= room:
    return prepared
  if ask.max_new_tokens is not None:
    raise UserError(f'{where}: with {wanted} new ones it passes the {positions} positions; at most {room} fit')
  report(f'{where} of {positions}: answers end after {room} new tokens instead of {wanted}')
  return dataclasses.replace(prepared, settings=prepared.settings | {'max_new_tokens': room})
