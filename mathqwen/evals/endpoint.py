"""Any served model: the same benchmarks over the OpenAI API, which vLLM and others speak. No weights, tokenizer or jax.

openai:http://127.0.0.1:8000/v1#Qwen2.5-Math-7B     chat prompts: POST http://127.0.0.1:8000/v1/chat/completions
                                                    text prompts: POST http://127.0.0.1:8000/v1/completions

The key is read from the environment (OPENAI_API_KEY; local servers need none) and is sent nowhere but to that address:
redirects are not followed, and what a server says is searched for it before it is shown or recorded.
"""

import collections
import contextlib
import dataclasses
import datetime
import email.utils
import http.client
import json
import math
import os
import pathlib
import queue
import random
import re
import socket
import ssl
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable

import mathqwen
from mathqwen.errors import Preempted, UserError
from mathqwen.evals import prompts as prompts_lib
from mathqwen.evals import records, run

PREFIX = 'openai:'
KEY = 'OPENAI_API_KEY'
_NAMED = 5  # problems without an answer
_MAX_BODY = 2**25  # bytes of one answer
_LONG_KEY = 8  # characters; shorter ones are names such as EMPTY, which an answer may contain
_LOST = 8  # problems without an answer, and none answered meanwhile, after which no more are asked
_OF_ALL = (401, 402, 404, 405)  # a server's refusals of every problem; others may be of one, such as one it filters
_REMEDIES = {
  400: 'another --prompt or --max-new-tokens may do',
  401: f'put the key of this server into {KEY}',
  403: f'the key in {KEY} may not use this model, or the server takes offence at this problem',
  404: 'look at the address (most end in /v1) and at the name after #',
}


@dataclasses.dataclass(frozen=True)
class Answer:
  text: str
  tokens: int | None  # as the server counts them; None where it does not say
  truncated: bool
  served_model: str | None  # the exact name behind an alias


class _Failure(Exception):
  """In place of an answer. again: it may pass; of_all: other problems would fare no better; busy: the server only has
  too much to do; wait: seconds that it asks for."""

  def __init__(self, what: str, again=True, of_all=False, busy=False, wait: float | None = None):
    super().__init__(what)
    self.again, self.of_all, self.busy, self.wait = again, of_all or busy, busy, wait


class _Stopped(Exception):
  """Nothing more is to be asked."""


class _Course:
  """Whether more is worth asking. Before the first answer: not after a failure of all, nor once the first `_LOST`
  problems all stayed unanswered. Later: not after one of all that no further try mends, nor once as many problems were
  tried in vain with no answer meanwhile."""

  def __init__(self, count: int):
    self._lock, self._least = threading.Lock(), min(_LOST, count)
    self._answered, self._last, self._first, self._since = 0, 0.0, 0, 0

  def is_lost(self, position: int, begun: float, ended: '_Failure | Answer') -> bool:
    with self._lock:
      if isinstance(ended, Answer):
        self._answered, self._last, self._since = self._answered + 1, time.monotonic(), 0
        return False
      self._first += position < _LOST
      self._since += ended.again and begun > self._last
      if not self._answered:
        return ended.of_all or self._first == self._least
      return (ended.of_all and not ended.again) or self._since >= _LOST


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


class _NoRedirects(urllib.request.HTTPRedirectHandler):
  """Before the library looks at where they lead."""

  def http_error_302(self, *_):
    return None

  http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class _Deadline:
  """Cuts the connection of an exchange that takes longer in all; the library's timeout bounds each byte's wait."""

  def __init__(self, seconds: float):
    self.passed, self._socket = threading.Event(), None
    self._timer = threading.Timer(seconds, self._cut)
    self._timer.daemon = True

  def holds_for(self, connection: socket.socket):
    self._socket = connection
    if self.passed.is_set():
      raise TimeoutError

  def _cut(self):
    self.passed.set()
    if self._socket is not None:
      with contextlib.suppress(OSError):  # it has ended by itself
        self._socket.shutdown(socket.SHUT_RDWR)

  def __enter__(self):
    self._timer.start()
    return self

  def __exit__(self, *_):
    self._timer.cancel()


class _Timed:
  def __init__(self, *args, deadline: _Deadline, **kwargs):
    super().__init__(*args, **kwargs)
    self._deadline = deadline

  def connect(self):
    super().connect()
    self._deadline.holds_for(self.sock)


class _Http(_Timed, http.client.HTTPConnection):
  pass


class _Https(_Timed, http.client.HTTPSConnection):
  pass


class _Connections(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
  """`request.deadline` holds for what is opened."""

  def http_open(self, request):
    return self.do_open(_Http, request, deadline=request.deadline)

  def https_open(self, request):
    return self.do_open(_Https, request, deadline=request.deadline)


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
    self.name = name
    self._url, self._model = parse(name)
    self._key = os.environ.get(KEY, '').strip()
    if not all('!' <= c <= '~' for c in self._key):
      raise UserError(f'{KEY} holds characters that no key has (spaces, line ends, accents); set it again')
    self._timeout, self._tries, self._patience, self._backoff = timeout, tries, patience, backoff
    self._gate, self._stop = _Gate(requests_per_minute), threading.Event()
    self._repeated, self._counting = collections.Counter(), threading.Lock()  # requests, by what was the matter
    self._open = urllib.request.build_opener(_NoRedirects, _Connections).open
    host = urllib.parse.urlsplit(self._url)
    if self._key and host.scheme == 'http' and host.hostname not in ('localhost', '127.0.0.1', '::1'):
      self._tell(f'{host.hostname} is asked over http: the key in {KEY} travels unencrypted')

  def generate_ids(
    self, prompts: list[dict], max_new_tokens: int, batch_size: int, on_done: Callable, stop_texts: tuple[str, ...], **_
  ):
    """Greedy; `on_done(position, Answer)` in this thread, as answers come, of `batch_size` requests at a time.

    Raises run.Unanswered at its end where problems had no answer. Where `_Course` says that it is lost, nothing new is
    asked, and what is under way is waited for.
    """
    self._stop.clear()
    self._repeated.clear()
    todo, answers, course = iter(range(len(prompts))), queue.SimpleQueue(), _Course(len(prompts))
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
        except _Failure as error:
          ended = error
        except Exception as error:  # a defect of ours: it is raised in the caller's thread
          answers.put((position, error))
          break
        if course.is_lost(position, begun, ended):
          self._stop.set()
        answers.put((position, ended))
      answers.put(None)

    threads = min(batch_size, len(prompts))
    for _ in range(threads):
      threading.Thread(target=work, daemon=True).start()  # Ctrl-C need not wait for them
    why, answered = {}, 0
    try:
      while threads:
        ended = answers.get()
        if ended is None:
          threads -= 1
        elif isinstance(ended[1], _Failure):
          why[ended[0]] = ended[1]
        elif isinstance(ended[1], Exception):
          raise ended[1]
        else:
          answered += 1
          on_done(*ended)
    finally:
      self._stop.set()
    if sum(self._repeated.values()) > len(self._repeated):
      self._tell(f'{self._url}: requests repeated: {_counted(self._repeated)}')
    if why:
      raise run.Unanswered(why, len(prompts) - answered - len(why))

  def _answer(self, prompt: dict, max_new_tokens: int) -> Answer:
    """Raises _Failure when the tries are used up, or for what no further try can mend."""
    body = {'model': self._model, **prompt, 'temperature': 0, 'max_tokens': max_new_tokens}
    path = 'chat/completions' if 'messages' in prompt else 'completions'
    request = urllib.request.Request(f'{self._url}/{path}', json.dumps(body).encode(), self._headers())
    failures, waits, busy_since, last = 0, 0, None, None  # a busy server is no failure
    while True:
      self._sleep(self._gate.seconds(), last)
      try:
        return self._once(request, 'messages' in prompt)
      except _Failure as error:
        if not error.again:
          raise
        failures += not error.busy
        wait = min(60, self._backoff * 2 ** min(waits, 20)) * random.uniform(0.5, 1)
        wait, waits = max(wait, (error.wait or 0) * random.uniform(1, 1.1)), waits + 1
        now = time.monotonic()
        busy_since = (busy_since or now) if error.busy else None
        if now + wait > busy_since + self._patience if error.busy else failures >= self._tries:
          raise
        last = error
        if error.wait is not None:
          self._gate.hold(error.wait)
        with self._counting:
          self._repeated[_kind(error)] += 1
          first = self._repeated[_kind(error)] == 1
        if first:
          self._tell(f'{self._url}: {error}; asked again')
        self._sleep(wait, last)

  def _sleep(self, seconds: float, last: _Failure | None):
    if self._stop.wait(seconds):
      raise last or _Stopped

  def _headers(self) -> dict:
    headers = {'Content-Type': 'application/json', 'User-Agent': f'mathqwen/{mathqwen.__version__}'}
    return headers | ({'Authorization': f'Bearer {self._key}'} if self._key else {})

  def _once(self, request: urllib.request.Request, chat: bool) -> Answer:
    with _Deadline(self._timeout) as deadline:
      request.deadline = deadline
      try:
        with self._open(request, timeout=self._timeout) as response:
          text = self._body(response)
      except urllib.error.HTTPError as error:
        with error:
          self._refused(error)
      except (OSError, http.client.HTTPException) as error:
        if deadline.passed.is_set() or isinstance(error, TimeoutError):
          raise _Failure(f'no answer within {self._timeout:g} seconds') from None
        self._unreachable(error)
      if deadline.passed.is_set():  # what came may look whole
        raise _Failure(f'no answer within {self._timeout:g} seconds')
    return self._parse(text, chat)

  def _unreachable(self, error: OSError | http.client.HTTPException):
    address = urllib.parse.urlsplit(self._url)
    proxied = urllib.request.getproxies().get(address.scheme) and not urllib.request.proxy_bypass(address.netloc)
    way = f' by the proxy that {address.scheme}_proxy names' if proxied else ''  # whose address may hold a password
    if not isinstance(error, urllib.error.URLError):
      raise _Failure(f'the connection{way} broke ({type(error).__name__})') from None
    what = f'cannot be reached{way} ({error.reason})'
    if isinstance(error.reason, ssl.SSLCertVerificationError):
      remedy = 'SSL_CERT_FILE names the certificates that are trusted'
      raise _Failure(f'{what}; {remedy}', again=False, of_all=True) from None
    raise _Failure(what, of_all=True) from None

  def _body(self, response) -> str:
    parts, size = [], 0
    while part := response.read1(65536):
      parts.append(part)
      size += len(part)
      if size > _MAX_BODY:
        raise _Failure(f'an answer of more than {_MAX_BODY:,} bytes')
    return self._clean(b''.join(parts).decode('utf-8', 'replace'))

  def _refused(self, error: urllib.error.HTTPError):
    try:
      text = self._clean(error.read1(65536).decode('utf-8', 'replace'))
    except (OSError, http.client.HTTPException):
      text = ''
    said = text
    try:
      found = json.loads(text)
      found = found.get('error', found)
      said, code = found.get('message', text), found.get('code')
    except (ValueError, AttributeError, RecursionError):
      code = None
    said = self._clean(' '.join(str(said).split()))  # again: JSON may have written the key with escapes
    what = self._clean(f'{error.code} {error.reason}') + (f' ({said[:300]})' if said else '')
    if error.code in (429, 503) and code != 'insufficient_quota':
      wait = _retry_after(error.headers.get('Retry-After'))
      asks = f', which asks to wait {wait:,.0f} seconds' if (wait or 0) > self._patience else ''
      raise _Failure(what + asks, busy=True, wait=wait)
    if error.code >= 500 or error.code in (408, 409):
      raise _Failure(what)
    if 300 <= error.code < 400 and error.headers.get('Location'):
      target = self._clean(error.headers['Location'])
      raise _Failure(
        f'it redirects to {target}, where the key is not sent; give that address', again=False, of_all=True
      )
    remedy = _REMEDIES.get(error.code, 'the server will not answer this request')
    of_all = error.code in _OF_ALL or error.code < 400 or code == 'insufficient_quota'
    raise _Failure(f'{what}; {remedy}', again=False, of_all=of_all)

  def _parse(self, text: str, chat: bool) -> Answer:
    if not text.strip():
      raise _Failure('an empty answer')
    try:
      said = json.loads(text)
      choice = said['choices'][0]
      reason, content = choice['finish_reason'], choice['message']['content'] if chat else choice['text']
      tokens, served = (said.get('usage') or {}).get('completion_tokens'), said.get('model')
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
      said = ' '.join(self._clean(text.replace('\\/', '/'))[:80].split())
      raise _Failure(f'not an answer of the OpenAI API: {said!r}') from None
    if content is None and reason in ('length', 'content_filter'):
      content = ''  # cut off while it was thinking, or withheld
    if not isinstance(content, str) or not isinstance(reason, str):
      raise _Failure('an answer without text or finish_reason')
    tokens = tokens if type(tokens) is int and 0 <= tokens < 2**31 else None
    served = self._clean(served) if isinstance(served, str) else None
    return Answer(self._clean(content), tokens, reason == 'length', served)

  def _clean(self, text: str) -> str:
    return text.replace(self._key, '***') if len(self._key) >= _LONG_KEY else text

  def _tell(self, text: str):
    sys.stderr.write(self._clean(text) + '\n')  # at once: several threads may speak


def _kind(error: _Failure) -> str:
  """`500 Internal Server Error`, without what this one said."""
  return re.split(r' \(|: ', str(error))[0]


def _counted(kinds: collections.Counter) -> str:
  return ', '.join(f'{count:,} times {kind}' for kind, count in kinds.most_common())


def _retry_after(value: str | None) -> float | None:
  """Seconds, from a number of them or a date."""
  if value is None:
    return None
  try:
    seconds = float(value)
  except ValueError:
    try:
      date = email.utils.parsedate_to_datetime(value)
      date = date if date.tzinfo else date.replace(tzinfo=datetime.UTC)
      seconds = (date - datetime.datetime.now(datetime.UTC)).total_seconds()
    except (ValueError, OverflowError):
      return None
  return max(0.0, seconds) if math.isfinite(seconds) else None


def parse(name: str) -> tuple[str, str]:
  """('http://127.0.0.1:8000/v1', 'Qwen2.5-Math-7B') of openai:http://127.0.0.1:8000/v1#Qwen2.5-Math-7B"""
  form = 'give openai:URL#MODEL, such as openai:http://127.0.0.1:8000/v1#Qwen2.5-Math-7B'
  url, _, model = name.removeprefix(PREFIX).partition('#')
  if not name.isprintable():
    raise UserError(f'{name!r} holds what is no text; {form}')
  if '@' in url or '?' in url:
    raise UserError(f'the address holds a key or a query, which records would show; put the key into {KEY}')
  try:
    parts = urllib.parse.urlsplit(url)
    parts.port  # noqa: B018 - a property that raises
    (parts.hostname or '').encode('idna')
  except ValueError as error:
    raise UserError(f'{url!r} is no address ({error}); {form}') from None
  if not parts.path.isascii():
    raise UserError(f'{url!r}: write what is not ASCII with percent signs, {urllib.parse.quote(parts.path)}')
  if parts.scheme not in ('http', 'https') or not parts.hostname or any(c.isspace() for c in url):
    raise UserError(f'{url!r} is no http or https address; {form}')
  if not model:
    raise UserError(f'{name}: which of its models? {form}')
  return url.rstrip('/'), model


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


def _final(error: run.Unanswered) -> _Failure | None:
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
