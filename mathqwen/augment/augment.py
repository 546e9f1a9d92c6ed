"""`augment`: more training data from the questions of a source, by the answers of a model; see README.md."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable

from mathqwen import files
from mathqwen.augment import questions as questions_lib
from mathqwen.augment import results
from mathqwen.augment.asking import Asked, Asking
from mathqwen.augment.questions import NewQuestion
from mathqwen.augment.stored import StoredAnswers, parts
from mathqwen.data import catalog, sources
from mathqwen.data.examples import Example
from mathqwen.errors import Preempted, UserError, report
from mathqwen.evals import asked, benchmarks, endpoint, folder, prompts, records, run
from mathqwen.evals.ask import Ask, check_positive, subset
from mathqwen.evals.tasks import PromptSettings
from mathqwen.grading import grade as graders
from mathqwen.hardware import hosts

TRAIN = 'train.jsonl'
PAIRS = results.PAIRS
SETTINGS = 'settings.json'
UNANSWERED = 'unanswered.json'
_MAX_NEW_TOKENS = 512  # of an answer to a question of no benchmark


@dataclasses.dataclass(frozen=True)
class AugmentRequest:
  """What is asked for. UserError: when a number is out of range, or two do not go together."""

  source: str  # as in data.sources: a data set, files, or hf://ORGANISATION/NAME
  out: str  # the folder for all that is made
  ask: Ask  # which questions, how they are asked, and how answers are drawn and graded
  columns: tuple[str, ...] = ()  # as data.columns
  questions: str | None = None  # one of questions.KINDS: ask new questions; None: ask those of the source
  per_question: int = 1  # new questions to each
  min_share: float = 0.5  # of the samples of a new question, that must agree on its answer
  keep_gold: bool = True  # whether the source's own solutions are in the result
  pairs: int = 0  # of a right and a wrong answer to each question, at most; 0: none are written

  def __post_init__(self):
    check_positive(per_question=self.per_question)
    if self.pairs < 0:
      raise UserError(f'pairs is {self.pairs}; it must be 0 or more')
    if self.pairs and self.ask.decoding.samples < 2:
      raise UserError('a pair is two answers to a question: set samples=2 or more')
    if not 0 < self.min_share <= 1:
      raise UserError(f'min_share is {self.min_share}; it must be above 0 and at most 1')
    if self.questions and not self.keep_gold:
      raise UserError('without_gold is for the questions of the source: new questions have no gold solution')
    if self.questions in questions_lib.INSTRUCTIONS and self.per_question > 1 and not self.ask.decoding.temperature:
      raise UserError(f'{self.per_question} new questions at temperature 0 are all the same; set a temperature')


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A request that has been checked, with its questions."""

  request: AugmentRequest
  rule: str
  prompt: prompts.Prompt
  max_new_tokens: int
  examples: list[Example]  # that are asked, or that new questions are made of; no two have the same question
  golds: dict[str, list[Example]]  # by the id of each of them: all rows of the source with its question
  left_out: dict[str, int]  # rows of the source that cannot, by why
  origin: dict[str, str]  # of the source, as `origins.of` has it
  settings: dict  # two runs with the same settings are the same run


def prepare(request: AugmentRequest, model: Asked) -> Prepared:
  """Reads the source and checks everything. The model needs no weights.

  UserError: for unknown names, bad data, a source without gold answers, and a rule that is not known.
  """
  ask = request.ask
  benchmark = next(
    (known for known in benchmarks.BENCHMARKS.values() if known.source == _name_of(request.source)), None
  )
  prompt_name = ask.prompt or (benchmark.prompt if benchmark else asked.DEFAULT)
  special = benchmark.by_prompt.get(prompt_name, PromptSettings()) if benchmark else PromptSettings()
  rule = ask.rule or special.rule or (benchmark.rule if benchmark else None)
  if rule is None:
    raise UserError(
      f'{request.source} is not the data of a benchmark, whose rule would grade the answers: give --rule, one of '
      f'{", ".join(graders.RULES)}'
    )
  prompt = prompts.get(prompt_name)
  examples, left_out, origin = _examples(request, rule)
  model.requests(prompt, examples[:1])  # raises where the template cannot render it
  digest = hashlib.sha256(json.dumps([(x.id, x.question, x.answer) for x in examples]).encode()).hexdigest()
  settings = {
    'source': request.source,
    'source_sha256': digest,
    'questions': request.questions,
    'per_question': request.per_question if request.questions else None,
    'model': model.name,
    'dtype': model.dtype,
    'prompt': prompt_name,
    **asked.of(model, prompt_name),
    'rule': rule,
    'limit': ask.limit,
    'limit_seed': None if ask.limit is None else ask.limit_seed,
    'max_new_tokens': ask.max_new_tokens
    or special.max_new_tokens
    or (benchmark.max_new_tokens if benchmark else _MAX_NEW_TOKENS),
    'samples': ask.decoding.samples,
    **{name: getattr(ask.decoding, name) for name in model.drawn},
    'request_json': model.request_json,
  }
  rows: dict[str, list[Example]] = {}
  for example in examples:
    rows.setdefault(example.question, []).append(example)
  golds = {same[0].id: same for same in rows.values()}
  asked_now = subset([same[0] for same in golds.values()], ask.limit, ask.limit_seed)
  return Prepared(request, rule, prompt, settings['max_new_tokens'], asked_now, golds, left_out, origin, settings)


def _name_of(source: str) -> str:
  return source if catalog.of_source(source) is None else catalog.name_of(source)


def _examples(request: AugmentRequest, rule: str) -> tuple[list[Example], dict[str, int], dict[str, str]]:
  """(the rows of the source that can be asked and graded; how many others there are, by why; where they come from)"""
  found, left_out = sources.load(request.source, 'train', request.ask.data_dir, columns=request.columns)
  for line in left_out.lines():
    report(f'{request.source}: {line}')
  counts = left_out.rows_left_out()
  grader = graders.get(rule)
  kept = []
  first: dict[str, str] = {}
  for example in found:
    if not example.answer:
      why = 'without a gold answer'
    elif graders.readable(example.answer, grader) is None:
      why = f'with a gold answer that rule {rule} cannot read'
    elif example.tools or sum(turn['role'] != 'assistant' for turn in example.messages or ()) > 1:
      why = 'that are more than a question and its answer'
    else:
      kept.append(example)
      continue
    counts[why] = counts.get(why, 0) + 1
    first.setdefault(why, example.where)
  for why, where in first.items():
    report(f'{request.source}: {counts[why]:,} rows {why} are left out, such as {where}')
  if not kept:
    raise UserError(f'{request.source}: no row has a question and a gold answer that rule {rule} can read')
  return kept, counts, left_out.origin


def augment(model: Asked, prepared: Prepared, show: bool = True) -> dict:
  """Asks what has not been asked, and writes train.jsonl, samples.jsonl, pairs.jsonl and the data card.

  Returns the summary.

  UserError, Preempted: when answers are missing. What is there is kept; Preempted: the same call may get the rest.
  """
  request = prepared.request
  out = files.path(request.out)
  why: dict = {}
  with contextlib.ExitStack() as stack:
    lock = stack.enter_context(files.locked(out, 'augmentation')) if hosts.share()[0] == 0 else files.Lock()
    files.make_folder(out)
    _check_folder(out, prepared.settings)
    late = _read_unanswered(out)
    asking = Asking(model, prepared.prompt, request.ask.decoding, prepared.max_new_tokens, show, why=why)
    askings = [asking]
    new = None
    # Earlier versions asked each row.
    passed_over = [row.id for same in prepared.golds.values() for row in same[1:]]
    questions = prepared.examples
    try:
      if request.questions:
        teaching = dataclasses.replace(
          asking,
          prompt=prompts.get(asked.DEFAULT),
          decoding=dataclasses.replace(request.ask.decoding, samples=request.per_question),
          too_long=[],
        )
        askings.append(teaching)
        new = _new_questions(teaching, prepared, out, lock, late)
        questions = [question.example() for question in new if question.dropped is None]
        # With a reply that an earlier run had to do without, a question may be a duplicate that was none then.
        passed_over = [question.id for question in new if question.dropped is not None]
      ids = [question.id for question in questions]
      stored = stack.enter_context(StoredAnswers(out, 'samples', ids, request.ask.decoding.samples, lock, passed_over))
      make_record = _grading(prepared.rule)
      asking.ask('samples', questions, stored, make_record, late, _state(prepared, questions, stored))
      stored.end()
    except run.Unanswered as error:
      _note_unanswered(out, error.why)
      text, may_help = endpoint.explain(error)
      message = f'{model.name}: {text}; what was answered is kept in {out}, and the same command continues'
      raise (Preempted if may_help else UserError)(message) from None
    summary = results.write(out, lock, prepared, questions, new, stored, askings)
    _note_unanswered(out, why)
  if why:
    text, may_help = endpoint.explain(run.Unanswered(why))
    message = f'{model.name}: {text}; {out}/{TRAIN} is made without these, and the same command asks for them again'
    raise (Preempted if may_help else UserError)(message)
  return summary


def _check_folder(out: files.AnyPath, settings: dict) -> None:
  """Writes the settings of a new run. UserError: when the folder has answers of another one, or other things."""
  there = [path for name in ('samples', 'questions') for path in parts(out, name) if files.has_lines(path)]
  if there:
    folder.check_settings(out, settings, there[0])
    return
  if not (out / SETTINGS).exists() and (out / TRAIN).exists():
    raise UserError(f'{out} holds a {TRAIN} that is not from here; give another --out')
  records.write_json(out / SETTINGS, settings)  # by every host, whose disk may be its own


def _read_unanswered(out: files.AnyPath) -> list[str]:
  path = out / UNANSWERED
  return list(records.read_json(path, 'delete it')) if path.exists() else []


def _note_unanswered(out: files.AnyPath, why: dict) -> None:
  if hosts.share()[0] != 0:
    return
  if why:
    records.write_json(out / UNANSWERED, {key: str(failure) for key, failure in why.items()})
  else:
    (out / UNANSWERED).unlink(missing_ok=True)


def _new_questions(
  asking: Asking, prepared: Prepared, out: files.AnyPath, lock: files.Lock, late: list[str]
) -> list[NewQuestion]:
  """The new questions, by the teacher's replies where it is asked for them."""
  request = prepared.request
  examples = prepared.examples
  kind = request.questions
  if kind not in questions_lib.INSTRUCTIONS:
    return questions_lib.backward(examples, request.per_question, request.ask.decoding.seed)
  wanted = [questions_lib.instruction(kind, example) for example in examples]
  with StoredAnswers(out, 'questions', [x.id for x in wanted], request.per_question, lock) as stored:
    asking.ask('questions', wanted, stored, lambda example, fields: fields, late)
    stored.end()
    replies = [found for _, found in results.gather(stored, len(wanted))]
  return questions_lib.from_replies(kind, examples, replies)


def _grading(rule: str) -> Callable[[Example, dict], dict]:
  """Makes the record of an answer. Where the question has no gold answer yet, only the answer is found."""

  def make_record(example: Example, fields: dict) -> dict:
    if example.answer:
      return graders.judged({**fields, 'gold': example.answer}, rule)
    return graders.unjudged(fields, rule)

  return make_record


def _state(prepared: Prepared, questions: list[Example], stored: StoredAnswers) -> Callable[[list[int]], str]:
  """What the line of progress says: of the questions that this run has asked, how many samples are kept."""
  counts = {'questions': 0, 'answers': 0, 'kept': 0, 'right': 0}

  def state(window: list[int]) -> str:
    for i in window:
      outcome = results.outcome_of(questions[i], stored.read(i), prepared)
      counts['questions'] += 1
      counts['answers'] += len(outcome.records)
      counts['right'] += sum(record['correct'] for record in outcome.records)
      counts['kept'] += sum(record['kept'] for record in outcome.records)
    answers = max(counts['answers'], 1)
    return (
      f'{counts["right"] / answers:.1%} right, {counts["kept"] / answers:.1%} kept, '
      f'{counts["kept"] / counts["questions"]:.2f} paths a question'
    )

  return state
