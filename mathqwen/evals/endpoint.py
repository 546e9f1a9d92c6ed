"""Any served model: the same benchmarks over the OpenAI API (client.py), concurrent, patient and continued.

No weights, tokenizer or jax.
"""

import collections
import contextlib
import json
import math
import os
import pathlib
import queue
import random
import re
import sys
import threading
import time
from collections.abc import Callable

from mathqwen.errors import Preempted, UserError
from mathqwen.evals import prompts as prompts_lib
from mathqwen.evals import records, run
from mathqwen.evals.client import Answer, Client, Failure

_NAMED = 5  # problems without an answer
_LOST = 8  # problems without an answer, and none answered meanwhile, after which no more are asked


class _Stopped(Exception):
  """Nothing more is to be asked."""


class _Course:
  """Whether more is worth asking. Before the first answer: not after a failure of all, nor once the first `_LOST`
  problems all stayed unanswered. Later: not after one of all that no further try mends, nor once `_LOST` problems that
  one might mend were tried in vain, with no answer meanwhile."""

  def __init__(self):
    self._lock = threading.Lock()
    self._answered, self._last, self._first, self._since = 0, 0.0, 0, 0

  def goes_on(self, position: int, begun: float, ended: Failure | Answer) -> bool:
    """After the problem at that position, first asked at `begun`, ended so."""
    with self._lock:
      if isinstance(ended, Answer):
        self._answered, self._last, self._since = self._answered + 1, time.monotonic(), 0
        return True
      self._first += position < _LOST
      self._since += ended.again and begun > self._last
      if not self._answered:
        return not ended.of_all and self._first < _LOST
      return not (ended.of_all and not ended.again) and self._since < _LOST


class _Gate:
  """When the next request may leave: all threads keep one pace, and all wait when the server asks one to."""

  def __init__(self, per_minute: float | None):
    self._interval = 60 / per_minute if per_minute else 0.0
    self._lock, self._next = threading.Lock(), 0.0

  def hold(self, seconds: float):
    with self._lock:
      self._next = max(self._next, time.monotonic() + seconds)

  def seconds(self) -> float:
    """Takes a place; the seconds until its turn."""
    with self._lock:
      now = time.monotonic()
      turn = max(now, self._next)
      self._next = turn + self._interval if self._interval else self._next
    return turn - now


class Endpoint:
  """Takes the place of a model in `run.run`.

  `tries` requests for a problem before it counts as unanswerable; a server that is only busy (429, 503) is borne with
  for `patience` seconds instead. `backoff`: seconds before the second try, doubled for each further one, to 60.
  """

  dtype, system_prompt = None, ''  # the server's affair

  def __init__(
    self,
    name: str,
    timeout: float = 600,
    requests_per_minute: float | None = None,
    tries: int = 6,
    patience: float = 900,
    backoff: float = 1.0,
  ):
    for what, value, least, most in (
      ('timeout', timeout, 0, threading.TIMEOUT_MAX),
      ('requests_per_minute', requests_per_minute, 60 / threading.TIMEOUT_MAX, math.inf),
    ):
      if value is not None and not least < value < most:
        raise UserError(f'{what} is {value}; it must be above {least:.3g} and below {most:.3g}')
    self.name, self._client = name, Client(name, timeout)
    self._tries, self._patience, self._backoff = tries, patience, backoff
    self._gate, self._stop = _Gate(requests_per_minute), threading.Event()
    self._repeated, self._counting = collections.Counter(), threading.Lock()  # requests, by what was the matter
    if host := self._client.unencrypted():
      self._tell(f'{host} is asked over http: the key travels unencrypted')

  def generate_ids(
    self, prompts: list[dict], max_new_tokens: int, batch_size: int, on_done: Callable, stop_texts: tuple[str, ...], **_
  ):
    """Greedy; `on_done(position, Answer)` in this thread, as answers come, of `batch_size` requests at a time.

    Raises run.Unanswered at its end where problems had no answer. Where `_Course` does not go on, nothing new is
    asked, and what is under way is waited for.
    """
    self._repeated.clear()
    why, answered = {}, 0
    with contextlib.closing(self._ask_all(prompts, max_new_tokens, batch_size, stop_texts)) as ends:
      for position, ended in ends:
        if isinstance(ended, Failure):
          why[position] = ended
        else:
          answered += 1
          on_done(position, ended)
    if sum(self._repeated.values()) > len(self._repeated):
      self._tell(f'{self._client.url}: requests repeated: {_counted(self._repeated)}')
    if why:
      raise run.Unanswered(why, len(prompts) - answered - len(why))

  def _ask_all(self, prompts: list[dict], max_new_tokens: int, batch_size: int, stop_texts: tuple[str, ...]):
    """(position, Answer or Failure) of each prompt that was asked, as they end. Closed, it asks nothing more."""
    self._stop.clear()
    todo, ends, course = iter(range(len(prompts))), queue.SimpleQueue(), _Course()
    lock, stop = threading.Lock(), {'stop': list(stop_texts)} if stop_texts else {}

    def work():
      while True:
        with lock:
          position = None if self._stop.is_set() else next(todo, None)
        if position is None:
          break
        begun = time.monotonic()
        try:
          ended = self._answer(prompts[position] | stop, max_new_tokens)
        except _Stopped:
          break
        except Failure as error:
          ended = error
        except Exception as error:  # a defect of ours: it is raised in the caller's thread
          ends.put((position, error))
          break
        if not course.goes_on(position, begun, ended):
          self._stop.set()
        ends.put((position, ended))
      ends.put(None)

    threads = min(batch_size, len(prompts))
    for _ in range(threads):
      threading.Thread(target=work, daemon=True).start()  # Ctrl-C need not wait for them
    try:
      while threads:
        if (end := ends.get()) is None:
          threads -= 1
        elif isinstance(end[1], Answer | Failure):
          yield end
        else:
          raise end[1]
    finally:
      self._stop.set()

  def _answer(self, prompt: dict, max_new_tokens: int) -> Answer:
    """Raises Failure when the tries are used up, or for what no further try can mend."""
    failures, waits, busy_since, last = 0, 0, None, None  # a busy server is no failure
    while True:
      self._sleep(self._gate.seconds(), last)
      try:
        return self._client.ask(prompt, max_new_tokens)
      except Failure as error:
        if not error.again:
          raise
        failures += not error.busy
        wait = min(60, self._backoff * 2 ** min(waits, 20)) * random.uniform(0.5, 1)
        wait, waits = max(wait, (error.wait or 0) * random.uniform(1, 1.1)), waits + 1
        now = time.monotonic()
        busy_since = (busy_since or now) if error.busy else None
        if error.busy and now + wait > busy_since + self._patience:
          asks = f', which asks to wait {error.wait:,.0f} seconds' if (error.wait or 0) > self._patience else ''
          raise Failure(f'{error}{asks}', busy=True) from None
        if failures >= self._tries or self._stop.is_set():
          raise
        last = error
        if error.wait is not None:
          self._gate.hold(error.wait)
        with self._counting:
          self._repeated[_kind(error)] += 1
          first = self._repeated[_kind(error)] == 1
        if first:
          self._tell(f'{self._client.url}: {error}; asked again')
        self._sleep(wait, last)

  def _sleep(self, seconds: float, last: Failure | None):
    if self._stop.wait(seconds):
      raise last or _Stopped

  def _tell(self, text: str):
    sys.stderr.write(self._client.clean(text) + '\n')  # at once: several threads may speak


def _kind(error: Failure) -> str:
  """`500 Internal Server Error`, without what this one said."""
  return re.split(r' \(|: ', str(error))[0]


def _counted(kinds: collections.Counter) -> str:
  return ', '.join(f'{count:,} times {kind}' for kind, count in kinds.most_common())


def evaluate(
  name: str,
  names,
  ask: run.Ask = run.ASK,
  *,
  out: str | os.PathLike | None = None,
  concurrency: int = 16,
  progress: bool = True,
  **options,
) -> dict:
  """As `run.evaluate`, of the model `openai:URL#MODEL`; `concurrency` requests are under way at a time.

  `options` are those of Endpoint. `decoding.batch_size` of the scores is `concurrency`.
  """
  run.at_least_one(concurrency=concurrency)
  if ask.decoding != run.GREEDY:
    raise UserError('a served model is asked for its greedy answer, once; leave decoding out')
  model = Endpoint(name, **options)
  prompts_of = lambda asked, rows: _prompts(asked, rows, model.system_prompt)
  jobs = [run.make_job(model, one, ask, prompts_of) for one in run.choose(names)]
  try:
    with run.open_jobs(jobs, out) as prepared:
      return run.run(model, prepared, concurrency, progress, record_of=_record)
  except run.Unanswered as error:
    said = f'{name}: {_told(error)}'
    if out is None:
      raise UserError(f'{said}; with --out DIR, the answers so far would have been kept') from None
    kept, wanted = sum(map(len, _stored(jobs, out))), sum(len(job.examples) for job in jobs)
    again = any(one.again for one in error.why.values()) and not _final(error)
    said += f'; {kept:,} of {wanted:,} answers are kept in {out}, beside unanswered.json'
    raise (Preempted if again else UserError)(f'{said}, and the same command continues') from None


def _final(error: run.Unanswered) -> Failure | None:
  """What no further try mends, for any problem."""
  return next((one for one in error.why.values() if one.of_all and not one.again), None)


def _told(error: run.Unanswered) -> str:
  """Why there is no answer to anything, or to which problems."""
  unasked = f'; {error.unasked:,} more were not asked' if error.unasked else ''
  first = next(iter(error.why.values()))
  if one := _final(error) or (first if error.unasked and all(one.of_all for one in error.why.values()) else None):
    return f'{one}{unasked}'
  alike = collections.defaultdict(list)
  for key, one in error.why.items():
    alike[_kind(one)].append((key, one))
  named = []
  for found in alike.values():
    keys = [key for key, _ in found]
    named.append(f'{", ".join(keys[:_NAMED])}{", ..." if keys[_NAMED:] else ""}: {found[0][1]}')
  count = len(error.why)
  return f'{count:,} problem{"s have" if count > 1 else " has"} no answer ({"; ".join(named)}){unasked}'


def _prompts(asked: prompts_lib.Prompt, rows: list, system_prompt: str) -> list[dict]:
  """What a request holds of each problem: text, or turns."""
  if asked.text:
    return [{'prompt': asked.text(row)} for row in rows]
  return [{'messages': asked.messages(row, system_prompt)} for row in rows]


def _stored(jobs: list[run.Job], out) -> list[list[dict]]:
  paths = [pathlib.Path(out) / job.benchmark.name / 'records.jsonl' for job in jobs]
  return [records.read(path).records for path in paths if path.exists()]


def _record(model: Endpoint, job: run.Job, index: int, answer: Answer) -> dict:
  prompt = job.prompts[index]
  # The turns; the template that makes text of them is the server's.
  text = prompt.get('prompt') or json.dumps(prompt['messages'], ensure_ascii=False)
  response, at_text = prompts_lib.cut(answer.text, job.stop)  # not every server takes `stop`
  return job.record(
    index,
    prompt=text,
    response=response,
    tokens=answer.tokens,
    truncated=answer.truncated and not at_text,
    served_model=answer.served_model,
  )
