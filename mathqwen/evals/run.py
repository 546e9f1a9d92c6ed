"""Evaluate a model on benchmarks, and grade stored answers again.

`evaluate` reads every benchmark and checks every prompt before the first token is generated; answers are graded and
appended to `OUT/NAME/records.jsonl` as they end; the same call again continues after the last of them.
`grade_records` needs no model and no accelerator.
"""

import contextlib
import dataclasses
import os
import pathlib
import sys
import time
from collections.abc import Callable

from mathqwen.errors import UserError
from mathqwen.evals import benchmarks, records, samples
from mathqwen.evals import folder as folder_lib
from mathqwen.evals import prompts as prompts_lib
from mathqwen.evals.folder import Folder
from mathqwen.evals.progress import Bar
from mathqwen.evals.provenance import provenance
from mathqwen.evals.tasks import Benchmark, PromptSettings
from mathqwen.grading import grade as graders
from mathqwen.grading import values
from mathqwen.hardware import hosts
from mathqwen.inference.sampling import Sampling, check_seed


@dataclasses.dataclass(frozen=True)
class Decoding:
  """How a model of ours answers; the defaults are greedy."""

  samples: int = 1  # answers to each problem
  temperature: float = 0.0
  top_p: float = 1.0
  top_k: int = 0
  seed: int = 0  # each sample of each problem draws from a stream of its own
  cache_dtype: str | None = None  # of keys and values; None: that of the model

  def __post_init__(self):
    if not 1 <= self.samples <= 10_000:  # all of them are lined up before the first is drawn
      raise UserError(f'samples is {self.samples}; it must be from 1 to 10,000')
    if self.samples > 1 and self.temperature == 0:
      raise UserError(f'{self.samples} samples at temperature 0 are all the same; set a temperature, such as 0.7')
    if self.temperature == 0 and (self.top_p, self.top_k) != (1.0, 0):
      raise UserError('top_p and top_k choose nothing at temperature 0; set a temperature, such as 0.7')
    Sampling(self.temperature, self.top_p, self.top_k)
    check_seed(self.seed)


GREEDY = Decoding()
DRAWN = ('temperature', 'top_p', 'top_k', 'seed', 'cache_dtype')  # what `generate_ids` takes of it


@dataclasses.dataclass(frozen=True)
class Ask:
  """What a model is asked, and how its answers are graded."""

  data_dir: str | os.PathLike | None = None  # a local copy of the data sets
  limit: int | None = None  # the first problems of each benchmark only
  prompt: str | None = None  # in prompts.PROMPTS; None: the benchmark's
  rule: str | None = None  # in grade.RULES; None: the one the prompt's system was graded with, else the benchmark's
  max_new_tokens: int | None = None  # None: the prompt's or the benchmark's, less where the model has not the positions
  decoding: Decoding = GREEDY

  def __post_init__(self):
    at_least_one(limit=self.limit, max_new_tokens=self.max_new_tokens)


def at_least_one(**counts: int | None):
  for what, value in counts.items():
    if value is not None and value < 1:
      raise UserError(f'{what} is {value}; it must be 1 or more')


ASK = Ask()


@dataclasses.dataclass(frozen=True)
class Job:
  """One benchmark, ready to be asked."""

  benchmark: Benchmark
  examples: list
  prompts: list  # per example: token ids, or what an endpoint is sent
  settings: dict  # what makes two runs the same run
  stop: tuple[str, ...] = ()  # texts at which an answer ends, besides the model's stop tokens

  def record(self, index: int, *, prompt: str, response: str, tokens: int | None, truncated: bool, **more) -> dict:
    """Of the answer to an example, graded."""
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
      'extra': example.extra,
      **more,
    }
    return graders.judged(record, self.settings['rule'])


class Unanswered(Exception):
  """What a model raises at the end of `generate_ids` where some prompts had no answer: `why`, an exception each, by the
  prompt's position; `run` raises it with the problems' ids. unasked: how many prompts it did not try at all."""

  def __init__(self, why: dict, unasked: int = 0):
    super().__init__(why)
    self.why, self.unasked = why, unasked


def evaluate(
  model, names, ask: Ask = ASK, *, out: str | os.PathLike | None = None, batch_size: int = 64, progress: bool = True
) -> dict:
  """Answers of `model` to the benchmarks `names`: `{'benchmarks': {name: scores}, 'tokens_per_second': ...}`.

  `batch_size` answers are under way at a time; with more than one sample of `ask.decoding`, pass@k and maj@k are in the
  scores. With `out`, records and scores are kept there.
  """
  with prepare(model, names, ask, out, batch_size) as prepared:
    return run(model, prepared, batch_size, progress)


def run(
  model,
  prepared: list[tuple[Job, Folder | None]],
  batch_size: int = 64,
  progress: bool = True,
  record_of: Callable | None = None,
) -> dict:
  """The second half of `evaluate`: generates, grades and writes what `prepare` found to be done.

  `record_of(model, job, index, answer)`: the record of an answer that is not token ids of `model.tokenizer`.
  """
  scores, why, unasked, tokens, seconds = {}, {}, 0, 0, 0.0
  for number, (job, folder) in enumerate(prepared):
    name = job.benchmark.name
    try:
      scores[name], new, took = _run(model, job, folder, batch_size, progress, record_of or _record)
    except Unanswered as error:
      why |= error.why
      if error.unasked:
        rest = prepared[number + 1 :]
        unasked = error.unasked + sum(
          len(one.examples) - len(kept.stored.records if kept else ()) for one, kept in rest
        )
        break
    else:
      tokens, seconds = tokens + new, seconds + took
  if why:
    raise Unanswered(why, unasked)
  return {'benchmarks': scores, 'tokens_per_second': tokens / seconds if tokens else None}


def prepare(model, names, ask: Ask = ASK, out: str | os.PathLike | None = None, batch_size: int = 64):
  """What `evaluate` would do and what of it is done, for a `with`; every argument is checked, the weights are not
  needed."""
  at_least_one(batch_size=batch_size)
  return open_jobs([_prepare(model, benchmark, ask) for benchmark in choose(names)], out)


def choose(names) -> list[Benchmark]:
  """The benchmarks of these names (text with commas, or a list; or benchmarks), each once."""
  names = [name.strip() for name in names.split(',')] if isinstance(names, str) else list(names)
  if not names:
    raise UserError(f'no benchmark given; there are: {", ".join(benchmarks.BENCHMARKS)}')
  return [one if isinstance(one, Benchmark) else benchmarks.get(one) for one in dict.fromkeys(names)]


@contextlib.contextmanager
def open_jobs(jobs: list[Job], out):
  """[(job, its Folder or None)]: each with OUT/NAME, locked for it, and what is done of it there."""
  with contextlib.ExitStack() as stack:
    prepared = []
    for job in jobs:
      folder = None
      if out is not None:
        path = folder_lib.place(out, job.benchmark.name)
        if hosts.share()[0] == 0:
          stack.enter_context(folder_lib.locked(path))
        folder = Folder(path, job.settings, job.examples)
      prepared.append((job, folder))
    yield prepared


def grade_records(path, benchmark: str, rule: str | None = None, out: str | os.PathLike | None = None) -> dict:
  """Grade stored answers again: `{'benchmarks': {name: scores}}`; with `out`, writes OUT/NAME/*.

  Each record needs `response`, `gold` and `id` or `question`; every other key is kept. `verdicts_changed` counts the
  records whose earlier `correct` differs.
  """
  chosen = benchmarks.get(benchmark)
  rule = rule or chosen.rule
  graders.get(rule)
  place = None if out is None else folder_lib.place(out, chosen.name)
  path = pathlib.Path(path)
  # An evaluation that is continued there meanwhile would lose its answers.
  with folder_lib.locked(place) if place and place.exists() else contextlib.nullcontext():
    graded, scores = _graded(path, chosen, rule)
    if place:
      folder_lib.write(place, graded, scores)
  return {'benchmarks': {chosen.name: scores}}


def _graded(path: pathlib.Path, benchmark: Benchmark, rule: str) -> tuple[list[dict], dict]:
  stored = records.read(path)
  if not stored.records:
    raise UserError(f'{path}: no records in it; give the records.jsonl of an evaluation')
  _tell(stored.note)
  for record in stored.records:
    if (said := record.get('benchmark')) in benchmarks.BENCHMARKS and said != benchmark.name:
      raise UserError(f'{path}: {record.get("id")!r} is of {said}, not of {benchmark.name}; give --benchmark {said}')
  before = folder_lib.about(path)  # of the run that generated the answers
  count = before.get('samples') or samples.count(stored.records)
  if count > 1 and (problem := samples.incomplete(stored.records, count)):
    raise UserError(f'{path}: {problem!r} has not all of its {count} answers; run the evaluation to its end first')
  graded = graders.judge([{**record, 'benchmark': benchmark.name} for record in stored.records], rule)
  scores = records.summarise(graded, benchmark, rule, count)
  scores['verdicts_changed'] = sum(
    old['correct'] != new['correct'] for old, new in zip(stored.records, graded, strict=True) if 'correct' in old
  )
  for key in ('prompt', 'model', 'dtype', 'decoding', 'limit', 'resumed', 'seconds', 'tokens_per_second'):
    scores[key] = before.get(key)
  scores['tokens'] = sum(r['tokens'] for r in graded) if all(isinstance(r.get('tokens'), int) for r in graded) else None
  return graded, scores | provenance() | ({'unfinished': True} if folder_lib.is_unfinished(path) else {})


def make_job(model, benchmark: Benchmark, ask: Ask, prompts_of: Callable) -> Job:
  """Of one benchmark, with what `prompts_of(prompts.Prompt, examples)` says that `model` is asked."""
  from mathqwen.data import sources

  prompt = ask.prompt or benchmark.prompt
  asked = prompts_lib.get(prompt)
  special = benchmark.by_prompt.get(prompt, PromptSettings())
  rule = ask.rule or special.rule or benchmark.rule
  grader = graders.get(rule)
  rows, report = sources.load(benchmark.source, benchmark.split, ask.data_dir, strict=True)
  for line in report.lines():
    _tell(f'{benchmark.name}: {line}')
  if getattr(grader, 'numeric', False) and (bad := [row for row in rows if values.value(row.answer) is None]):
    raise UserError(
      f'{benchmark.name}: {len(bad)} gold answers are no numbers, such as {bad[0].answer!r} ({bad[0].where}): mend '
      'them, or grade by another --rule'
    )
  rows = samples.expand(rows[: ask.limit], ask.decoding.samples)
  prompts = prompts_of(asked, rows)
  new_tokens = ask.max_new_tokens or special.max_new_tokens or benchmark.max_new_tokens
  settings = {
    'model': model.name,
    'dtype': model.dtype,
    'benchmark': benchmark.name,
    'prompt': prompt,
    'system_prompt': model.system_prompt if prompt == 'chatml' else None,
    'rule': rule,
    'max_new_tokens': new_tokens,
    'limit': ask.limit,
    **dataclasses.asdict(ask.decoding),
  }
  return Job(benchmark, rows, prompts, settings, asked.stop)


def _prepare(model, benchmark: Benchmark, ask: Ask) -> Job:
  """`make_job` of token ids, with no more new tokens than the model has positions for."""
  if model.tokenizer is None:
    raise UserError(f'{model.name} has no tokenizer files: copy those of its model there')
  prompts_of = lambda asked, rows: prompts_lib.ids(asked, rows, model.tokenizer, model.system_prompt)
  job = make_job(model, benchmark, ask, prompts_of)
  positions, wanted = model.config.max_position_embeddings, job.settings['max_new_tokens']
  longest = max(range(len(job.prompts)), key=lambda i: len(job.prompts[i]))
  room = positions - len(job.prompts[longest])
  where = f'{benchmark.name}: the prompt of {job.examples[longest].id} has {len(job.prompts[longest])} tokens'
  if room < 1:
    raise UserError(f'{where}, the model has {positions} positions; use a model with more')
  if wanted <= room:
    return job
  if ask.max_new_tokens is not None:
    raise UserError(f'{where}: with {wanted} new ones it passes the {positions} positions; at most {room} fit')
  _tell(f'{where} of {positions}: answers end after {room} new tokens instead of {wanted}')
  return dataclasses.replace(job, settings=job.settings | {'max_new_tokens': room})


def _run(
  model, job: Job, folder: Folder | None, batch_size: int, progress: bool, record_of: Callable
) -> tuple[dict, int, float]:
  """(scores, tokens generated now, seconds that took), of all hosts."""
  if folder:
    _tell(folder.stored.note)
  done, todo, resumed = _divide(job, folder)
  start = time.monotonic()
  new = _answer(model, job, folder, done, todo, batch_size, progress, record_of)
  tokens = sum(record['tokens'] or 0 for record in new)
  told = hosts.gather({'records': done + new, 'tokens': tokens, 'seconds': time.monotonic() - start})
  found = {record['id']: record for one in told for record in one['records']}
  tokens, seconds = sum(one['tokens'] for one in told), max(one['seconds'] for one in told)
  ordered = [found[example.id] for example in job.examples]
  scores = records.summarise(ordered, job.benchmark, job.settings['rule'], job.settings['samples'])
  scores.update({key: job.settings[key] for key in ('prompt', 'model', 'dtype', 'limit')})
  scores['decoding'] = {name: job.settings[name] for name in (*DRAWN, 'max_new_tokens')} | {'batch_size': batch_size}
  counts = [record['tokens'] for record in ordered]
  scores['tokens'] = None if None in counts else sum(counts)
  # Speed is that of the answers generated now; earlier ones, after an interruption, are only counted.
  scores['resumed'] = resumed
  scores['seconds'] = seconds if tokens else None
  scores['tokens_per_second'] = tokens / seconds if tokens else None
  scores.update(provenance())
  if folder and hosts.share()[0] == 0:
    if before := folder.scores():  # nothing was missing
      scores.update({key: before.get(key) for key in ('resumed', 'seconds', 'tokens_per_second', 'decoding')})
    folder.finish(ordered, scores)
  return scores, tokens, seconds


def _divide(job: Job, folder: Folder | None) -> tuple[list[dict], list[int], int]:
  """(stored records that are this host's to tell, positions that it is to answer, stored records of all hosts)."""
  # Judged again: `grade` may have written verdicts of another rule there.
  stored = graders.judge(folder.stored.records if folder else [], job.settings['rule'])
  host, count = hosts.share()
  own = {'stored': [record['id'] for record in stored], 'in_vain': list(folder.unanswered) if folder else []}
  told = hosts.gather(own)
  first = {}  # {id: the first host that has it}: hosts may see the same files, or each its own
  for number, one in enumerate(told):
    first = {key: number for key in one['stored']} | first
  late = {key: number for number, key in enumerate(told[0]['in_vain'])}  # host 0's: all divide one list
  missing = [i for i, example in enumerate(job.examples) if example.id not in first]
  missing.sort(key=lambda i: late.get(job.examples[i].id, -1))
  if first:
    _tell(f'{job.benchmark.name}: {len(first)} of {len(job.examples)} answers are there, {len(missing)} to go')
  return [record for record in stored if first[record['id']] == host], missing[host::count], len(first)


def _answer(
  model, job: Job, folder: Folder | None, done: list[dict], todo: list[int], batch_size, progress, record_of
) -> list[dict]:
  """The records of the answers to `todo`, each written as it ends. Unanswered names problems by their ids."""
  new = []
  writer = folder.writer() if folder else contextlib.nullcontext()
  shown = progress and hosts.share()[0] == 0
  with writer, Bar(job.benchmark.name, len(done) + len(todo), done, shown) as bar:

    def on_done(position, answer):
      record = record_of(model, job, todo[position], answer)
      new.append(record)
      if folder:
        writer.write(record)
      bar.advance(record['correct'])

    try:
      model.generate_ids(
        [job.prompts[i] for i in todo],
        max_new_tokens=job.settings['max_new_tokens'],
        batch_size=batch_size,
        on_done=on_done,
        stop_texts=job.stop,
        numbers=todo,
        **{name: job.settings[name] for name in DRAWN},
      )
    except Unanswered as error:
      why = {job.examples[todo[position]].id: one for position, one in error.why.items()}
      if folder:
        missing = {job.examples[i].id for i in todo} - {record['id'] for record in new}
        folder.note_unanswered({key: str(one) for key, one in why.items()}, missing)
      raise Unanswered(why, error.unasked) from None
  return new


def _record(model, job: Job, index: int, ids: list[int]) -> dict:
  stopped = bool(len(ids)) and ids[-1] in model.tokenizer.stop_ids
  response, at_text = prompts_lib.cut(model.tokenizer.decode(list(ids[:-1] if stopped else ids)), job.stop)
  prompt = _text(job.prompts[index], model.tokenizer)
  return job.record(index, prompt=prompt, response=response, tokens=len(ids), truncated=not (stopped or at_text))


def _text(ids: list[int], tokenizer) -> str:
  """The text of a prompt with its special tokens, which `decode` leaves out."""
  names = {number: name for name, number in tokenizer.special.items()}
  parts, start = [], 0
  for end, number in enumerate([*ids, None]):
    if number is None or number in names:
      parts += [tokenizer.decode(ids[start:end]), names.get(number, '')]
      start = end + 1
  return ''.join(parts)


def _tell(note: str | None):
  if note:
    print(note, file=sys.stderr)
