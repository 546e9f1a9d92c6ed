"""What an augmentation leaves: train, pairs, samples and new_questions (.jsonl), summary.json and the data card.

All of them are made from the answers in DIR, a question at a time.
"""

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mathqwen import files
from mathqwen.augment import card
from mathqwen.augment import questions as questions_lib
from mathqwen.augment.asking import Asking
from mathqwen.augment.questions import NewQuestion
from mathqwen.augment.selection import DROPPED, pairs, select
from mathqwen.augment.stored import StoredAnswers
from mathqwen.data.examples import Example
from mathqwen.evals import records
from mathqwen.grading import grade as graders
from mathqwen.hardware import hosts

if TYPE_CHECKING:
  from mathqwen.augment.augment import Prepared

PAIRS = 'pairs.jsonl'
_GATHERED = 64  # questions whose answers the hosts send to each other at a time


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of a question."""

  records: list[dict]  # its samples, each with `kept`, `dropped` and `why`
  answer: str  # gold, expected, or of the majority; '' when a new question is dropped
  share: float | None  # of all samples of a new question, that agree on its answer
  why: str  # why a new question is dropped


def outcome_of(example: Example, found: list[dict], prepared: 'Prepared') -> Outcome:
  """Selects among the samples of a question; of a new one, after its answer is verified."""
  request = prepared.request
  if not request.questions:
    golds = [row.solution for row in prepared.golds[example.id]] if request.keep_gold else []
    return Outcome(select(found, golds), example.answer, None, '')
  if not found:
    return Outcome([], '', 0.0, 'no sample has an answer')
  if not example.answer:
    # An earlier run may have judged some of them by the answer that was most frequent then.
    found = [graders.unjudged(record, prepared.rule) for record in found]
  answer, share, why = questions_lib.verify(example.answer, found, prepared.settings['samples'], request.min_share)
  if answer is not None and graders.readable(answer, graders.get(prepared.rule)) is None:
    answer, why = None, 'no majority'
  if answer is None:
    dropped = [{**record, 'kept': False, 'dropped': 'unverified question', 'why': why} for record in found]
    return Outcome(dropped, '', share, why)
  if not example.answer:
    found = [graders.judged({**record, 'gold': answer}, prepared.rule) for record in found]
  return Outcome(select(found, []), answer, share, '')


def gather(stored: StoredAnswers, count: int) -> Iterator[tuple[int, list[dict]]]:
  """(question, its answers on all hosts) for each of `count` questions. All hosts must take all of them."""
  for start in range(0, count, _GATHERED):
    window = range(start, min(start + _GATHERED, count))
    by_host = hosts.gather([stored.read(i) for i in window])
    for at, i in enumerate(window):
      found: dict[str, dict] = {}
      for of_host in by_host:
        for record in of_host[at]:
          found.setdefault(record['id'], record)
      yield i, sorted(found.values(), key=lambda record: int(record['id'].rpartition('#')[2]))


def write(
  out: files.AnyPath,
  lock: files.Lock,
  prepared: 'Prepared',
  asked: list[Example],
  new: list[NewQuestion] | None,
  stored: StoredAnswers,
  askings: list[Asking],
) -> dict:
  """Writes all files, on host 0. Returns the summary, on every host.

  asked: the questions that had samples. new: new questions, dropped ones too. askings: how all were asked, the samples
  first.
  """
  counts = _Counts()
  outcomes: dict[str, Outcome] = {}  # of new questions, without their samples
  with contextlib.ExitStack() as stack:
    lock.check()
    train = stack.enter_context(_replacing(out / 'train.jsonl'))
    samples = stack.enter_context(_replacing(out / 'samples.jsonl'))
    write_pair = stack.enter_context(_replacing(out / PAIRS)) if prepared.request.pairs else None
    for i, found in gather(stored, len(asked)):
      outcome = outcome_of(asked[i], found, prepared)
      if new is not None:
        outcomes[asked[i].id] = dataclasses.replace(outcome, records=[])
      rows = [_json_line(row) for row in _rows(asked[i], outcome, prepared)]
      paired = [_json_line(row) for row in _pair_rows(asked[i], outcome, prepared)]
      counts.add(outcome, rows, paired)
      for row in rows:
        train(row)
      for pair in paired:
        write_pair(pair)
      for record in outcome.records:
        samples(records.line(record))

  summary = counts.summary(prepared, askings)
  if new is not None:
    summary |= _write_new_questions(out, lock, new, outcomes)
  summary |= _speed(out, askings)
  if hosts.share()[0] == 0:
    records.write_json(out / 'summary.json', summary)
    files.write_atomically(out / 'README.md', card.text(summary, prepared).encode())
  return summary


@contextlib.contextmanager
def _replacing(path: files.AnyPath) -> Iterator[Callable[[bytes], None]]:
  """Writes a file, on host 0."""
  if hosts.share()[0] != 0:
    yield lambda line: None
    return
  with files.open_replacing(path) as file:
    yield file.write


def _rows(example: Example, outcome: Outcome, prepared: 'Prepared') -> list[dict]:
  """The rows of train.jsonl with that question: the gold ones, then the samples that are kept."""
  # A new question has no gold one.
  golds = prepared.golds.get(example.id, []) if prepared.request.keep_gold else []
  kept = [record for record in outcome.records if record['kept']]
  solutions = [(row.id, row.solution, row.answer) for row in golds if row.solution]
  solutions += [(record['id'], record['response'].strip(), outcome.answer) for record in kept]
  return [
    {
      'id': name,
      'question': example.question,
      'solution': solution,
      'answer': answer,
      'source': prepared.request.source,
      'paths': len(solutions),
    }
    for name, solution, answer in solutions
  ]


def _pair_rows(example: Example, outcome: Outcome, prepared: 'Prepared') -> list[dict]:
  """The rows of pairs.jsonl with that question."""
  return [
    {
      'id': f'{right["id"]} {wrong["id"]}',
      'prompt': example.question,
      'chosen': right['response'].strip(),
      'rejected': wrong['response'].strip(),
      'answer': outcome.answer,
      'source': prepared.request.source,
    }
    for right, wrong in pairs(outcome.records, prepared.request.pairs)
  ]


def _json_line(row: dict) -> bytes:
  # A lone surrogate becomes its JSON escape instead of an encoding error.
  return json.dumps(row, ensure_ascii=False).encode('utf-8', 'backslashreplace') + b'\n'


class _Counts:
  """Of all questions and samples."""

  def __init__(self):
    self.questions = self.with_paths = self.rows = self.tokens = 0
    self.samples = self.right = self.kept = self.pairs = self.with_pairs = 0
    self.dropped: collections.Counter[str] = collections.Counter()
    self.request_changes: set[str] = set()  # what of the requests the server did not take
    self.digest = hashlib.sha256()

  def add(self, outcome: Outcome, rows: list[bytes], paired: list[bytes]) -> None:
    """Counts one question."""
    self.questions += 1
    self.rows += len(rows)
    for row in rows:
      self.digest.update(row)
    for record in outcome.records:
      self.samples += 1
      self.tokens += record['tokens'] or 0
      self.request_changes.update(record.get('request_changes', ()))
      self.right += record['correct']
      self.kept += record['kept']
      self.dropped[record['dropped']] += not record['kept']
    self.pairs += len(paired)
    self.with_pairs += bool(paired)
    self.with_paths += any(record['kept'] for record in outcome.records)

  def summary(self, prepared: 'Prepared', askings: list[Asking]) -> dict:
    """What --json prints, without the speed."""
    settings = prepared.settings
    by_host = hosts.gather([asking.too_long for asking in askings])
    # Of each asking. A host knows only of the questions that it asked itself.
    too_long = [set(itertools.chain(*of_asking)) for of_asking in zip(*by_host, strict=True)]
    wanted = self.questions * settings['samples']
    found = {'pairs': self.pairs, 'questions_with_pairs': self.with_pairs} if prepared.request.pairs else {}
    return found | {
      'out': str(prepared.request.out),
      'source': prepared.request.source,
      'model': settings['model'],
      'kind': settings['questions'],
      'questions': self.questions,
      'left_out': prepared.left_out,
      'too_long': sum(map(len, too_long)),
      'samples': self.samples,
      # Only of the questions that need samples: what leaves the teacher no room never becomes one of them.
      'missing': wanted - self.samples - len(too_long[0]) * settings['samples'],
      'right': self.right,
      'undecided': self.dropped['undecided'],
      'kept': self.kept,
      'keep_rate': self.kept / self.samples if self.samples else None,
      'dropped': {name: self.dropped[name] for name in (*DROPPED, 'unverified question') if self.dropped[name]},
      'paths_per_question': self.kept / self.questions if self.questions else None,
      'questions_with_paths': self.with_paths,
      'rows': self.rows,
      'tokens': self.tokens,
      'request_changes': sorted(self.request_changes),
      'sha256': self.digest.hexdigest(),  # of train.jsonl
    }


def _speed(out: files.AnyPath, askings: list[Asking]) -> dict:
  """The speed of this run, of all hosts together; that of an earlier one, when there was nothing to ask.

  All hosts must call it.
  """
  by_host = hosts.gather([[asking.answers, asking.tokens, asking.seconds] for asking in askings])
  answers = tokens = 0
  seconds = 0.0
  for of_asking in zip(*by_host, strict=True):
    answers += sum(of_host[0] for of_host in of_asking)
    tokens += sum(of_host[1] for of_host in of_asking)
    seconds += max(of_host[2] for of_host in of_asking)  # the hosts ask at the same time, and wait for the last one
  if not answers:
    path = out / 'summary.json'
    before = records.read_json(path, 'delete it') if path.exists() else {}
    return {name: before.get(name) for name in ('seconds', 'answers_per_second', 'tokens_per_second')}
  return {'seconds': seconds, 'answers_per_second': answers / seconds, 'tokens_per_second': tokens / seconds}


def _write_new_questions(
  out: files.AnyPath, lock: files.Lock, new: list[NewQuestion], outcomes: dict[str, Outcome]
) -> dict:
  """Writes new_questions.jsonl. Returns counts for the summary."""
  dropped: collections.Counter[str] = collections.Counter()
  lock.check()
  with _replacing(out / 'new_questions.jsonl') as write_line:
    for question in new:
      outcome = outcomes.get(question.id)
      why = question.dropped or outcome.why
      dropped[why] += bool(why)
      row = {
        'id': question.id,
        'source_id': question.source_id,
        'question': question.question,
        'expected': question.answer or None,
        'answer': (outcome.answer if outcome else '') or None,
        'share': outcome.share if outcome else None,
        'kept': not why,
        'dropped': why or None,
      }
      write_line(_json_line(row))
  made = len(new)
  dropped_counts = {name: count for name, count in sorted(dropped.items()) if count}
  return {
    'new_questions': made,
    'new_questions_kept': made - sum(dropped_counts.values()),
    'new_questions_dropped': dropped_counts,
  }
