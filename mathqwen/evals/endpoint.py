"""Evaluates a served model over the OpenAI API, with several requests at the same time, which are retried.

client.py sends one request. Here are the threads that call it, and what happens to answers and failures. None of this
needs weights, a tokenizer or JAX.
"""

import collections
import contextlib
import dataclasses
import json
import math
import os
import queue
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from mathqwen import files
from mathqwen.chat import thinking
from mathqwen.errors import Preempted, UserError, report
from mathqwen.evals import continuing, records, run
from mathqwen.evals import prompts as prompts_lib
from mathqwen.evals.ask import ASK, Ask, PreparedBenchmark, check_positive, compared, prepare_benchmark
from mathqwen.evals.benchmarks import choose
from mathqwen.evals.client import Client
from mathqwen.evals.pacing import Gate, StopCriterion
from mathqwen.evals.replies import Answer, Failure
from mathqwen.evals.tasks import Benchmark

_NAMED = 5  # problems without an answer that an error names
_MAX_BACKOFF = 60  # seconds
_MAX_DOUBLINGS = 20  # of the backoff; more would overflow
_SEEDS = 1_000_003  # between the first seeds of two runs: a prime above the answers of most runs


class _Stopped(Exception):
  """Raised in a thread when no further request may be sent."""


class Endpoint:
  """A served model. It takes the place of a model of ours in `run.run`."""

  precision = None  # only the server knows
  chat = None  # the server has its own template, which may have a system turn

  def __init__(
    self,
    name: str,
    timeout: float = 600,
    requests_per_minute: float | None = None,
    system_prompt: str = '',
    request_json: Mapping | None = None,
    tries: int = 6,
    patience: float = 900,
    backoff: float = 1.0,
  ):
    """name: openai:URL#MODEL. timeout: seconds for one request. tries: requests for a problem until it has failed.

    system_prompt: the system turn before each question; '' sends none. request_json: more fields of each request.
    patience: seconds to wait, for one problem, for a server that is only busy (429, 503); that uses up no tries.
    backoff: seconds before the second try, doubled for each further one. UserError: for a bad name, key or number.
    """
    limits = (
      ('timeout', timeout, 0, threading.TIMEOUT_MAX),
      ('requests_per_minute', requests_per_minute, 60 / threading.TIMEOUT_MAX, math.inf),
    )
    for what, value, least, most in limits:
      if value is not None and not least < value < most:
        raise UserError(f'{what} is {value}; it must be above {least:.3g} and below {most:.3g}')
    self.name = name
    self.system_prompt = system_prompt
    self.request_json = dict(request_json or {})
    self._client = Client(name, timeout, self.request_json, lambda line: self._report(f'{self._client.url}: {line}'))
    self._tries = tries
    self._patience = patience
    self._backoff = backoff
    self._gate = Gate(requests_per_minute)
    self._stop = threading.Event()
    self._repeated: collections.Counter[str] = collections.Counter()  # repeated requests, by what had failed
    self._lock = threading.Lock()  # of the counter and of what threads report
    if host := self._client.unencrypted():
      self._report(f'{host} is asked over http: the key travels unencrypted')

  def generate_ids(
    self,
    prompts: list[dict],
    max_new_tokens: int,
    batch_size: int,
    on_done: Callable,
    stop_texts: tuple[str, ...],
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
    max_thinking_tokens: int | None = None,
    on_cut: Callable[[int], None] | None = None,
    cache_dtype: None = None,
  ) -> None:
    """Asks for the answers, `batch_size` at a time. Calls `on_done(position, Answer)` in this thread.

    numbers: of the prompts; with them, each request at a temperature has a seed of its own.
    max_thinking_tokens: see `continuing`. on_cut(position): called before `on_done` when thinking was closed.
    cache_dtype: the server decides it.

    Unanswered: at the end, when problems have no answer. Once `StopCriterion` gives up, no further problem is asked;
    requests under way are waited for.
    """
    self._repeated.clear()
    why: dict[int, Failure] = {}
    answered = 0
    more: dict[str, object] = {'temperature': temperature}
    if top_p < 1:
      more['top_p'] = top_p
    if top_k:
      more['top_k'] = top_k
    if stop_texts:
      more['stop'] = list(stop_texts)
    asked = [prompt | more for prompt in prompts]
    if temperature and numbers is not None:
      asked = [
        prompt | {'seed': (_SEEDS * seed + number) % 2**31} for prompt, number in zip(asked, numbers, strict=True)
      ]
    with contextlib.closing(self._ask_all(asked, max_new_tokens, batch_size, max_thinking_tokens)) as results:
      for position, result in results:
        if isinstance(result, Failure):
          why[position] = result
        else:
          answered += 1
          if result.thinking_cut and on_cut is not None:
            on_cut(position)
          on_done(position, result)
    if self._repeated.total() > len(self._repeated):  # the first of each kind was reported when it happened
      counts = ', '.join(f'{count:,} times {kind}' for kind, count in self._repeated.most_common())
      self._report(f'{self._client.url}: requests repeated: {counts}')
    if why:
      raise run.Unanswered(why, len(prompts) - answered - len(why))

  def _ask_all(
    self, prompts: list[dict], max_new_tokens: int, batch_size: int, budget: int | None
  ) -> Iterator[tuple[int, Answer | Failure]]:
    """(position, result) of each prompt that was asked, as they end. When the generator is closed, no more are asked.

    A thread puts None on the queue when it has ended, and an exception that is a defect of ours to be raised here.
    """
    self._stop.clear()
    todo = iter(range(len(prompts)))
    taking = threading.Lock()
    results: queue.SimpleQueue = queue.SimpleQueue()
    criterion = StopCriterion()

    def work():
      while True:
        with taking:
          position = None if self._stop.is_set() else next(todo, None)
        if position is None:
          break
        started = time.monotonic()
        try:
          if budget is None:
            result = self._answer(prompts[position], max_new_tokens)
          else:
            result = continuing.answer_within(self._answer, prompts[position], max_new_tokens, budget)
        except _Stopped:
          break
        except Failure as error:
          result = error
        except Exception as error:
          results.put((position, error))
          break
        if not criterion.keep_asking(position, started, result):
          self._stop.set()
        results.put((position, result))
      results.put(None)

    running = min(batch_size, len(prompts))
    for _ in range(running):
      threading.Thread(target=work, daemon=True).start()  # daemons, so that Ctrl-C need not wait for them
    try:
      while running:
        item = results.get()
        if item is None:
          running -= 1
          continue
        position, result = item
        if not isinstance(result, Answer | Failure):
          raise result
        yield position, result
    finally:
      self._stop.set()

  def _answer(self, prompt: dict, max_new_tokens: int) -> Answer:
    """The answer to one prompt. Failure: when the tries are used up, or when no retry helps."""
    failures = 0  # a busy server is not counted
    waits = 0
    busy_since = None
    last: Failure | None = None
    while True:
      self._sleep(self._gate.take_turn(), last)
      try:
        return self._client.ask(prompt, max_new_tokens)
      except Failure as error:
        if not error.retryable:
          raise
        wait = self._wait_after(error, waits)
        waits += 1
        if error.busy:
          now = time.monotonic()
          busy_since = busy_since or now
          if now + wait > busy_since + self._patience:
            long_wait = (error.retry_after or 0) > self._patience
            asks = f', which asks to wait {error.retry_after:,.0f} seconds' if long_wait else ''
            raise Failure(f'{error}{asks}', busy=True) from None
        else:
          busy_since = None
          failures += 1
        if failures >= self._tries or self._stop.is_set():
          raise
        if error.retry_after is not None:
          self._gate.pause(error.retry_after)
        self._count_repeated(error)
        last = error
        self._sleep(wait, last)

  def _wait_after(self, error: Failure, waits: int) -> float:
    """Seconds: doubled for each wait, and at least what the server asks for; random, so that threads spread out."""
    backoff = min(_MAX_BACKOFF, self._backoff * 2 ** min(waits, _MAX_DOUBLINGS)) * random.uniform(0.5, 1)
    return max(backoff, (error.retry_after or 0) * random.uniform(1, 1.1))

  def _count_repeated(self, error: Failure) -> None:
    kind = _kind(error)
    with self._lock:
      self._repeated[kind] += 1
      first = self._repeated[kind] == 1
    if first:
      self._report(f'{self._client.url}: {error}; asked again')

  def _sleep(self, seconds: float, last: Failure | None) -> None:
    """Raises the last failure, or _Stopped, as soon as nothing more is to be asked."""
    if self._stop.wait(seconds):
      raise last or _Stopped

  def _report(self, text: str) -> None:
    with self._lock:
      report(self._client.clean(text))


def _kind(error: Failure) -> str:
  """`500 Internal Server Error`, without the details of this one."""
  return re.split(r' \(|: ', str(error))[0]


# --- evaluate ---


def evaluate(
  name: str,
  names: str | Iterable[str | Benchmark],
  ask: Ask = ASK,
  *,
  out: str | os.PathLike | None = None,
  concurrency: int = 16,
  progress: bool = True,
  **options,
) -> dict:
  """As `run.evaluate`, for the model `openai:URL#MODEL`, with `concurrency` requests at a time.

  `options` are those of Endpoint. `decoding.batch_size` in the scores is `concurrency`. UserError: for bad arguments,
  and when the same call would not help. Preempted: when some problems have no answer and the same call may get them.
  """
  check_positive(concurrency=concurrency)
  if ask.decoding.cache_dtype is not None:
    raise UserError(f'cache_dtype is {ask.decoding.cache_dtype!r}: a served model decides its own; leave it out')
  model = Endpoint(name, **options)

  def make_prompts(prompt, examples):
    return requests(prompt, examples, model.system_prompt)

  prepared = [prepare_benchmark(model, benchmark, ask, make_prompts) for benchmark in choose(names, ask.rule)]
  prepared = compared(prepared, ask)
  if model.request_json:
    more = {'request_json': model.request_json}
    prepared = [dataclasses.replace(one, settings=one.settings | more) for one in prepared]
  for one in prepared:
    most = one.settings['max_new_tokens'] - 1
    if (ask.max_thinking_tokens or 0) > most:
      raise UserError(
        f'{one.name}: max_thinking_tokens is {ask.max_thinking_tokens}: with max_new_tokens {most + 1}, it must be at '
        f'most {most}, so that an answer fits behind the thinking; set max_new_tokens higher'
      )
  try:
    with run.open_folders(prepared, out) as opened:
      return run.run(model, opened, concurrency, progress, record_of=_record_of_answer)
  except run.Unanswered as error:
    why, may_help = explain(error)
    message = f'{name}: {why}'
    if out is None:
      raise UserError(f'{message}; with --out DIR, the answers so far would have been kept') from None
    kept = _count_stored(prepared, out)
    wanted = sum(len(benchmark.examples) for benchmark in prepared)
    message += f'; {kept:,} of {wanted:,} answers are kept in {out}, beside unanswered.json'
    message += ', and the same command continues'
    raise (Preempted if may_help else UserError)(message) from None


def _hopeless(error: run.Unanswered) -> Failure | None:
  """The first failure that affects all problems and that no retry helps."""
  for failure in error.why.values():
    if failure.affects_all and not failure.retryable:
      return failure
  return None


def explain(error: run.Unanswered) -> tuple[str, bool]:
  """(why nothing is answered, or else which problems are not, and why; whether the same command may get them)"""
  may_help = any(failure.retryable for failure in error.why.values()) and not _hopeless(error)
  return _explain(error), may_help


def _explain(error: run.Unanswered) -> str:
  unasked = f'; {error.unasked:,} more {"was" if error.unasked == 1 else "were"} not asked' if error.unasked else ''
  failures = list(error.why.values())
  common = _hopeless(error)
  if common is None and error.unasked and all(failure.affects_all for failure in failures):
    common = failures[0]
  if common:
    return f'{common}{unasked}'

  ids_of_kind = collections.defaultdict(list)
  first_of_kind: dict[str, Failure] = {}
  for key, failure in error.why.items():
    ids_of_kind[_kind(failure)].append(key)
    first_of_kind.setdefault(_kind(failure), failure)
  listed = []
  for kind, keys in ids_of_kind.items():
    more = ', ...' if len(keys) > _NAMED else ''
    listed.append(f'{", ".join(keys[:_NAMED])}{more}: {first_of_kind[kind]}')
  problems = '1 problem has' if len(failures) == 1 else f'{len(failures):,} problems have'
  return f'{problems} no answer ({"; ".join(listed)}){unasked}'


def requests(prompt: prompts_lib.Prompt, examples: list, system_prompt: str) -> list[dict]:
  """The part of each request that holds the problem: a text, or chat turns."""
  if prompt.text:
    return [{'prompt': prompt.text(example)} for example in examples]
  return [{'messages': prompt.messages(example, system_prompt)} for example in examples]


def _count_stored(prepared: list[PreparedBenchmark], out: str | os.PathLike) -> int:
  paths = [files.path(out) / benchmark.name / 'records.jsonl' for benchmark in prepared]
  return sum(len(records.read(path).records) for path in paths if path.exists())


def _record_of_answer(model: Endpoint, prepared: PreparedBenchmark, index: int, answer: Answer) -> dict:
  request = prepared.prompts[index]
  # Of a chat, the turns: only the server knows the template that makes text of them.
  prompt = request.get('prompt') or json.dumps(request['messages'], ensure_ascii=False)
  return prepared.record(index, prompt=prompt, **response_of_answer(answer, prepared.stop))


def response_of_answer(answer: Answer, stop: Sequence[str]) -> dict:
  """Fields of a record: `response`, `tokens`, `truncated`, `served_model`, and what else the server said.

  stop: texts that end an answer.
  """
  response, at_stop_text = prompts_lib.cut(answer.text, stop)  # not every server takes `stop`
  fields = {
    'response': response,
    'tokens': answer.tokens,
    'truncated': False if at_stop_text else answer.filtered or answer.truncated,
    'served_model': answer.served_model,
  }
  thinks = answer.reasoning is not None or thinking.has_tag(response)
  said = {
    'reasoning': answer.reasoning,
    # Servers that do not send the thinking may count it; those that do may not.
    'thinking_tokens': answer.reasoning_tokens or (None if thinks else 0),
    'request_changes': list(answer.changes) or None,
  }
  return fields | {name: value for name, value in said.items() if value is not None}
