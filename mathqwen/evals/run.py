"""Evaluate a model on benchmarks, and grade stored answers again.

`evaluate` reads every benchmark and checks every prompt before the first token is generated. Each answer is graded and
appended to `OUT/NAME/records.jsonl` as soon as it is complete, and the same call again answers only what is missing.
`grade_records` needs no model and no accelerator.
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from mathqwen import files
from mathqwen.chat import thinking
from mathqwen.chat.chat_format import text_with_specials
from mathqwen.errors import UserError, report
from mathqwen.evals import asked, benchmarks, records, samples
from mathqwen.evals import folder as folder_lib
from mathqwen.evals import prompts as prompts_lib
from mathqwen.evals.against import compare
from mathqwen.evals.ask import (
  ASK,
  DRAWN,
  GREEDY,
  Ask,
  Decoding,
  PreparedBenchmark,
  check_positive,
  compared,
  prepare_for_model,
)
from mathqwen.evals.asked import AskedModel
from mathqwen.evals.folder import Folder
from mathqwen.evals.progress import Bar
from mathqwen.evals.tasks import Benchmark
from mathqwen.grading import grade as graders
from mathqwen.hardware import hosts
from mathqwen.storage import provenance

if TYPE_CHECKING:
  from mathqwen.inference.model import Model

__all__ = ['ASK', 'GREEDY', 'Ask', 'Decoding', 'Unanswered', 'evaluate', 'grade_records', 'prepare', 'run']


class Unanswered(Exception):
  """Some prompts have no answer. A model raises it at the end of `generate_ids`, `run` at the end of an evaluation.

  why: {position of the prompt: Exception} from a model, {id of the problem: Exception} from `run`.
  unasked: how many further prompts were not tried at all.
  """

  def __init__(self, why: dict, unasked: int = 0):
    super().__init__(why)
    self.why = why
    self.unasked = unasked


# --- evaluate ---


def evaluate(
  model: 'Model',
  names: str | Iterable[str | Benchmark],
  ask: Ask = ASK,
  *,
  out: str | os.PathLike | None = None,
  batch_size: int = 64,
  progress: bool = True,
) -> dict:
  """Asks `model` the benchmarks `names`: `{'benchmarks': {name: scores}, 'tokens_per_second': ...}`.

  `batch_size` answers are generated at a time. With several samples in `ask.decoding`, the scores have pass@k and
  maj@k. With `out`, records and scores are kept there. UserError: for bad arguments and data, before anything is
  generated.
  """
  with prepare(model, names, ask, out, batch_size) as prepared:
    return run(model, prepared, batch_size, progress)


def prepare(
  model: 'Model',
  names: str | Iterable[str | Benchmark],
  ask: Ask = ASK,
  out: str | os.PathLike | None = None,
  batch_size: int = 64,
) -> contextlib.AbstractContextManager[list[tuple[PreparedBenchmark, Folder | None]]]:
  """The first half of `evaluate`, to be used with `with`: reads, checks and locks everything. Needs no weights.

  Yields what `open_folders` yields.
  """
  check_positive(batch_size=batch_size)
  chosen = benchmarks.choose(names, ask.rule)
  return open_folders(compared([prepare_for_model(model, benchmark, ask) for benchmark in chosen], ask), out)


@contextlib.contextmanager
def open_folders(
  prepared: list[PreparedBenchmark], out: str | os.PathLike | None
) -> Iterator[list[tuple[PreparedBenchmark, Folder | None]]]:
  """Each benchmark with its OUT/NAME, locked by this evaluation, and what earlier runs left there."""
  with contextlib.ExitStack() as stack:
    opened = []
    for benchmark in prepared:
      folder = None
      if out is not None:
        path = folder_lib.folder_of(out, benchmark.name)
        lock = None
        if hosts.share()[0] == 0:  # several hosts may see the same directory
          lock = stack.enter_context(files.locked(path))
        folder = Folder(path, benchmark.settings, benchmark.examples, lock)
      opened.append((benchmark, folder))
    yield opened


def run(
  model: AskedModel,
  opened: list[tuple[PreparedBenchmark, Folder | None]],
  batch_size: int = 64,
  progress: bool = True,
  record_of: Callable | None = None,
) -> dict:
  """The second half of `evaluate`: generates, grades and writes what `prepare` found to be missing.

  `record_of(model, prepared, index, answer)` makes the record of an answer that is not token ids of `model.tokenizer`.
  """
  scores = {}
  why = {}
  unasked = 0
  tokens = 0
  seconds = 0.0
  for number, (prepared, folder) in enumerate(opened):
    try:
      finished = _run_benchmark(model, prepared, folder, batch_size, progress, record_of or _record_of_ids)
    except Unanswered as error:
      why |= error.why
      if error.unasked:  # the model gave up, so it is not asked the other benchmarks either
        unasked = error.unasked + sum(_count_missing(*later) for later in opened[number + 1 :])
        break
    else:
      scores[prepared.name] = finished.scores
      tokens += finished.new_tokens
      seconds += finished.seconds
  if why:
    raise Unanswered(why, unasked)
  return {'benchmarks': scores, 'tokens_per_second': tokens / seconds if tokens else None}


def _count_missing(prepared: PreparedBenchmark, folder: Folder | None) -> int:
  return len(prepared.examples) - (len(folder.stored.records) if folder else 0)


@dataclasses.dataclass(frozen=True)
class _Finished:
  """One benchmark at its end, over all hosts."""

  scores: dict
  new_tokens: int  # generated by this run
  seconds: float  # that generating them took


def _run_benchmark(
  model: AskedModel,
  prepared: PreparedBenchmark,
  folder: Folder | None,
  batch_size: int,
  progress: bool,
  record_of: Callable,
) -> _Finished:
  """Answers, grades, scores and writes one benchmark. Every host gets the same scores; host 0 writes them."""
  if folder and folder.stored.note:
    report(folder.stored.note)
  share = _divide(prepared, folder)

  start = time.monotonic()
  new = _answer(model, prepared, folder, share, batch_size, progress, record_of)
  own = {
    'records': share.stored + new,
    'tokens': sum(record['tokens'] or 0 for record in new),
    'seconds': time.monotonic() - start,
  }

  by_host = hosts.gather(own)
  found = {record['id']: record for host in by_host for record in host['records']}
  ordered = [found[example.id] for example in prepared.examples]
  if prepared.overlap:
    ordered = prepared.overlap.mark(ordered)
  tokens = sum(host['tokens'] for host in by_host)
  seconds = max(host['seconds'] for host in by_host)

  scores = _scores_of(prepared, ordered, batch_size)
  # Speed is that of the answers generated by this run. Those of earlier runs are only counted.
  scores['resumed'] = share.resumed
  scores['seconds'] = seconds if tokens else None
  scores['tokens_per_second'] = tokens / seconds if tokens else None
  scores.update(provenance.code())

  if folder and hosts.share()[0] == 0:
    if before := folder.scores():  # it was finished already, so keep the speed and decoding of the run that finished it
      scores.update({key: before.get(key) for key in ('resumed', 'seconds', 'tokens_per_second', 'decoding')})
    folder.finish(ordered, scores)
  return _Finished(scores, tokens, seconds)


def _scores_of(prepared: PreparedBenchmark, ordered: list[dict], batch_size: int) -> dict:
  settings = prepared.settings
  scores = records.summarise(ordered, prepared.benchmark, settings['rule'], settings['samples'])
  scores.update({key: settings[key] for key in (*asked.FIELDS, 'model', 'dtype', 'limit', 'limit_seed')})
  scores['decoding'] = {name: settings[name] for name in (*DRAWN, 'max_new_tokens')} | {'batch_size': batch_size}
  scores['decoding'] |= {key: settings[key] for key in ('request_json', 'max_thinking_tokens') if settings.get(key)}
  if changes := sorted({change for record in ordered for change in record.get('request_changes', ())}):
    scores['decoding']['request_changes'] = changes
  counts = [record['tokens'] for record in ordered]
  scores['tokens'] = None if None in counts else sum(counts)  # a server need not count
  return scores


@dataclasses.dataclass(frozen=True)
class _Share:
  """What this host contributes to one benchmark."""

  stored: list[dict]  # records of earlier runs that this host reports; every other record is reported by another host
  todo: list[int]  # positions of the problems that it answers
  resumed: int  # how many records earlier runs left on all hosts


def _divide(prepared: PreparedBenchmark, folder: Folder | None) -> _Share:
  """Divides the unanswered problems among the hosts, which may share a directory or have one each."""
  # Graded again, because `grade` may have written verdicts of another rule there.
  stored = graders.judge(folder.stored.records if folder else [], prepared.settings['rule'])
  own = {
    'stored': [record['id'] for record in stored],
    'unanswered': list(folder.unanswered) if folder else [],
  }
  by_host = hosts.gather(own)

  first_host: dict[str, int] = {}  # the lowest host that has the record of an id reports it
  for number, known in enumerate(by_host):
    for key in known['stored']:
      first_host.setdefault(key, number)

  # Ask problems that stayed unanswered last, in the order in which they were noted: otherwise a few bad ones would
  # end every run at its start. All hosts use the list of host 0, because all must divide the same list.
  late = {key: place for place, key in enumerate(by_host[0]['unanswered'])}
  examples = prepared.examples
  missing = [index for index, example in enumerate(examples) if example.id not in first_host]
  # The first sample of each problem, then the second: a problem that a server refuses is one of many at any time.
  samples_each = prepared.settings['samples']
  missing.sort(key=lambda index: (late.get(examples[index].id, -1), index % samples_each))

  if first_host:
    total = len(examples)
    report(f'{prepared.name}: {len(first_host)} of {total} answers are there, {len(missing)} to go')
  host, count = hosts.share()
  reported = [record for record in stored if first_host[record['id']] == host]
  return _Share(reported, missing[host::count], len(first_host))


def _answer(
  model: AskedModel,
  prepared: PreparedBenchmark,
  folder: Folder | None,
  share: _Share,
  batch_size: int,
  progress: bool,
  record_of: Callable,
) -> list[dict]:
  """The records of the answers to `share.todo`, each written as soon as it is complete.

  Unanswered: names problems by their ids.
  """
  settings = prepared.settings
  todo = share.todo
  new = []
  writer = folder.writer() if folder else contextlib.nullcontext()
  shown = progress and hosts.share()[0] == 0
  with writer, Bar(prepared.name, len(share.stored) + len(todo), share.stored, shown) as bar:
    cut: set[int] = set()
    budget = settings['max_thinking_tokens']
    limited = {} if budget is None else {'max_thinking_tokens': budget, 'on_cut': cut.add}

    def on_done(position, answer):
      record = record_of(model, prepared, todo[position], answer)
      if budget is not None:
        record['thinking_cut'] = position in cut
      new.append(record)
      if folder:
        writer.write(record)
      bar.count(record['correct'])

    try:
      model.generate_ids(
        [prepared.prompts[index] for index in todo],
        max_new_tokens=settings['max_new_tokens'],
        batch_size=batch_size,
        on_done=on_done,
        stop_texts=prepared.stop,
        numbers=todo,
        **{name: settings[name] for name in DRAWN},
        **limited,
      )
    except Unanswered as error:
      why = {prepared.examples[todo[position]].id: reason for position, reason in error.why.items()}
      if folder:
        missing = {prepared.examples[index].id for index in todo} - {record['id'] for record in new}
        folder.note_unanswered({key: str(reason) for key, reason in why.items()}, missing)
      raise Unanswered(why, error.unasked) from None
  return new


def _record_of_ids(model: 'Model', prepared: PreparedBenchmark, index: int, ids: list[int]) -> dict:
  """The record of an answer that is token ids of the model."""
  prompt = text_with_specials(prepared.prompts[index], model.tokenizer)
  fields = response_of_ids(model, ids, prepared.stop)
  fields['thinking_tokens'] = thinking.count(prepared.prompts[index], ids, model.tokenizer)
  return prepared.record(index, prompt=prompt, **fields)


def response_of_ids(model: 'Model', ids: list[int], stop: Sequence[str]) -> dict:
  """Fields of a record: `response`, `tokens` and `truncated`. stop: texts that end an answer."""
  stopped = len(ids) > 0 and ids[-1] in model.chat.stop_ids(model.tokenizer)
  text = model.tokenizer.decode(list(ids[:-1] if stopped else ids))
  response, at_stop_text = prompts_lib.cut(text, stop)
  return {'response': response, 'tokens': len(ids), 'truncated': not (stopped or at_stop_text)}


# --- grade ---


def grade_records(
  path: str | os.PathLike,
  benchmark: str,
  rule: str | None = None,
  out: str | os.PathLike | None = None,
  against: Sequence[str] = (),
  data_dir: str | None = None,
) -> dict:
  """Grades stored answers again: `{'benchmarks': {name: scores}}`. With `out`, writes OUT/NAME/*.

  Each record needs `response`, `gold` and `id` or `question`; every other key is kept. `verdicts_changed` counts the
  records whose earlier `correct` was different. against, data_dir: as in `Ask`.
  UserError: for unknown names and for records that cannot be graded.
  """
  (chosen,) = benchmarks.choose([benchmark], rule)
  rule = rule or chosen.rule
  graders.get(rule)
  place = None if out is None else folder_lib.folder_of(out, chosen.name)
  path = files.path(path)
  # Lock it: an evaluation that continues there at the same time would lose its answers.
  with files.locked(place) if place and place.exists() else contextlib.nullcontext():
    graded, scores = _graded(path, chosen, rule, against, data_dir)
    if place:
      folder_lib.write(place, graded, scores)
  return {'benchmarks': {chosen.name: scores}}


def _graded(
  path: files.AnyPath, benchmark: Benchmark, rule: str, against: Sequence[str], data_dir: str | None
) -> tuple[list[dict], dict]:
  """The records of `path` with new verdicts, and their scores."""
  stored = records.read(path)
  if not stored.records:
    raise UserError(f'{path}: no records in it; give the records.jsonl of an evaluation')
  if stored.note:
    report(stored.note)
  for record in stored.records:
    named = record.get('benchmark')  # a name that we do not know is not an error
    if named in benchmarks.BENCHMARKS and named != benchmark.name:
      raise UserError(f'{path}: {record.get("id")!r} is of {named}, not of {benchmark.name}; give --benchmark {named}')

  before = folder_lib.known_about(path)  # of the run that generated the answers
  count = before.get('samples') or samples.per_problem(stored.records)
  if count > 1 and (problem := samples.incomplete(stored.records, count)):
    raise UserError(f'{path}: {problem!r} does not have all of its {count} answers; finish the evaluation first')

  if against:
    questions = [record.get('question') for record in stored.records]
    if not all(isinstance(question, str) for question in questions):
      raise UserError(f'{path}: a record has no question, which --against compares; evaluate again, or leave it out')
    stored = dataclasses.replace(stored, records=compare(questions, against, data_dir).mark(stored.records))
  graded = graders.judge([{**record, 'benchmark': benchmark.name} for record in stored.records], rule)
  scores = records.summarise(graded, benchmark, rule, count)
  pairs = zip(stored.records, graded, strict=True)
  scores['verdicts_changed'] = sum(old['correct'] != new['correct'] for old, new in pairs if 'correct' in old)
  kept = ('model', 'dtype', 'decoding', 'limit', 'limit_seed', 'resumed', 'seconds', 'tokens_per_second')
  for key in (*asked.FIELDS, *kept):
    scores[key] = before.get(key)
  tokens = [record.get('tokens') for record in graded]
  scores['tokens'] = sum(tokens) if all(isinstance(count, int) for count in tokens) else None
  scores |= provenance.code()
  if folder_lib.is_unfinished(path):
    scores['unfinished'] = True
  return graded, scores
