"""One request to a server that speaks the OpenAI API, such as vLLM: an answer, or why there is none.

openai:http://127.0.0.1:8000/v1#Qwen2.5-Math-7B     chat prompts: POST http://127.0.0.1:8000/v1/chat/completions
                                                    text prompts: POST http://127.0.0.1:8000/v1/completions

The key is read from the environment (OPENAI_API_KEY; local servers need none) and is sent to that address only:
redirects are not followed, and the key is masked in everything a server says before it is shown or recorded.
"""

import contextlib
import dataclasses
import datetime
import email.utils
import http.client
import json
import math
import os
import socket
import ssl
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import NoReturn

import mathqwen
from mathqwen.errors import UserError
from mathqwen.evals import replies
from mathqwen.evals.dialect import Dialect
from mathqwen.evals.replies import Answer, Failure, Refusal

PREFIX = 'openai:'
KEY = 'OPENAI_API_KEY'
MAX_BODY = 2**25  # bytes of one response
_CHUNK = 2**16  # bytes read at a time
_LONG_KEY = 8  # characters; shorter keys are names such as EMPTY, which an answer may contain
# Status codes that mean every request will be refused. Others may be about one problem, such as one that is filtered.
_REFUSES_ALL = (401, 402, 404, 405)
_REMEDIES = {
  400: 'another --prompt or --max-new-tokens may help',
  401: f'put the key of this server into {KEY}',
  403: f'the key in {KEY} may not use this model, or the server refuses this problem',
  404: 'check the address (most end in /v1) and the name after #',
}


# --- connections: urllib with a limit on the whole exchange, and without redirects ---


class _NoRedirects(urllib.request.HTTPRedirectHandler):
  """Leaves a redirect to `Client._refused`. The library's own handler would fail on a malformed target."""

  def http_error_302(self, *_):
    return None

  http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class _Deadline:
  """Cuts the connection when an exchange takes too long in all. The library's timeout is for each read only."""

  def __init__(self, seconds: float):
    self.passed = threading.Event()
    self._socket: socket.socket | None = None
    self._timer = threading.Timer(seconds, self._cut)
    self._timer.daemon = True

  def watch(self, connection: socket.socket) -> None:
    """This connection is cut at the deadline. TimeoutError: when that has passed."""
    self._socket = connection
    if self.passed.is_set():
      raise TimeoutError

  def _cut(self):
    self.passed.set()
    if self._socket is not None:
      with contextlib.suppress(OSError):  # the connection has ended already
        # Not the method of an ssl socket, which would drop its state while another thread reads from it.
        socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

  def __enter__(self):
    self._timer.start()
    return self

  def __exit__(self, *_):
    self._timer.cancel()


class _WithDeadline:
  """Mixed into a connection of http.client."""

  def __init__(self, *args, deadline: _Deadline, **kwargs):
    super().__init__(*args, **kwargs)
    self._deadline = deadline

  def connect(self):
    super().connect()
    self._deadline.watch(self.sock)


class _HttpConnection(_WithDeadline, http.client.HTTPConnection):
  pass


class _HttpsConnection(_WithDeadline, http.client.HTTPSConnection):
  pass


class _OpenWithDeadline(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
  """Opens connections that end at `request.deadline`."""

  def http_open(self, request):
    return self.do_open(_HttpConnection, request, deadline=request.deadline)

  def https_open(self, request):
    return self.do_open(_HttpsConnection, request, deadline=request.deadline)


# --- requests and answers ---


class Client:
  """Asks one model of one server."""

  def __init__(
    self, name: str, timeout: float, extra: Mapping | None = None, tell: Callable[[str], None] = lambda line: None
  ):
    """name: openai:URL#MODEL. timeout: seconds for a whole request. extra, tell: as `Dialect` takes them.

    UserError: for a bad name or key.
    """
    self.url, self._model = parse(name)
    self._timeout = timeout
    self._dialect = Dialect(extra or {}, tell)
    self._key = os.environ.get(KEY, '').strip()
    if not all('!' <= character <= '~' for character in self._key):
      raise UserError(f'{KEY} holds characters that no key has (spaces, line ends, accents); set it again')
    self._open = urllib.request.build_opener(_NoRedirects, _OpenWithDeadline).open

  def unencrypted(self) -> str | None:
    """The host that the key is sent to without encryption; None when there is none."""
    host = urllib.parse.urlsplit(self.url)
    local = host.hostname in ('localhost', '127.0.0.1', '::1')
    return host.hostname if self._key and host.scheme == 'http' and not local else None

  def ask(self, prompt: dict, max_new_tokens: int) -> Answer:
    """The answer to `{'messages': turns}` or `{'prompt': text}`, with other fields of the request. Raises Failure."""
    fields = {'model': self._model, **prompt, 'max_tokens': max_new_tokens}
    path = 'chat/completions' if 'messages' in prompt else 'completions'
    while True:
      body, changes = self._dialect.body(fields)
      request = urllib.request.Request(f'{self.url}/{path}', json.dumps(body).encode(), self._headers())
      try:
        answer = replies.read(self._exchange(request), max_new_tokens, self.clean)
        return dataclasses.replace(answer, changes=changes)
      except Failure as error:
        if error.refusal is None or not self._dialect.learn(body, error.refusal):
          raise

  def _headers(self) -> dict:
    headers = {'Content-Type': 'application/json', 'User-Agent': f'mathqwen/{mathqwen.__version__}'}
    if self._key:
      headers['Authorization'] = f'Bearer {self._key}'
    return headers

  def _exchange(self, request: urllib.request.Request) -> str:
    """Sends the request and returns the body of the response."""
    late = f'no answer within {self._timeout:g} seconds'
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
          raise Failure(late) from None
        self._unreachable(error)
      if deadline.passed.is_set():  # the connection was cut, so the body may be incomplete and look complete
        raise Failure(late)
    return text

  def _body(self, response) -> str:
    parts = []
    size = 0
    while part := response.read1(_CHUNK):
      parts.append(part)
      size += len(part)
      if size > MAX_BODY:
        raise Failure(f'an answer of more than {MAX_BODY:,} bytes')
    return b''.join(parts).decode('utf-8', 'replace')

  def _unreachable(self, error: OSError | http.client.HTTPException) -> NoReturn:
    """Raises the Failure for a connection that cannot be made or that broke."""
    address = urllib.parse.urlsplit(self.url)
    proxied = urllib.request.getproxies().get(address.scheme) and not urllib.request.proxy_bypass(address.netloc)
    # The proxy's address itself is not shown: it may hold a password.
    way = f' by the proxy that {address.scheme}_proxy names' if proxied else ''
    if not isinstance(error, urllib.error.URLError):
      raise Failure(f'the connection{way} broke ({type(error).__name__})') from None
    what = f'cannot be reached{way} ({error.reason})'
    if isinstance(error.reason, ssl.SSLCertVerificationError):
      remedy = 'SSL_CERT_FILE names the certificates that are trusted'
      raise Failure(f'{what}; {remedy}', retryable=False, affects_all=True) from None
    raise Failure(what, affects_all=True) from None

  def _refused(self, error: urllib.error.HTTPError) -> NoReturn:
    """Raises the Failure for a status that is not 200."""
    message, code, field = _message_of(error)
    message = self.clean(' '.join(message.split()))
    what = self.clean(f'{error.code} {error.reason}')
    if message:
      what += f' ({message[:300]})'

    out_of_quota = code == 'insufficient_quota'  # OpenAI's 429 that no waiting helps
    if error.code in (429, 503) and not out_of_quota:
      raise Failure(what, busy=True, retry_after=parse_retry_after(error.headers.get('Retry-After')))
    if error.code >= 500 or error.code in (408, 409):
      raise Failure(what)
    if 300 <= error.code < 400 and error.headers.get('Location'):
      target = self.clean(error.headers['Location'])
      what = f'it redirects to {target}, where the key is not sent; give that address'
      raise Failure(what, retryable=False, affects_all=True)
    remedy = _REMEDIES.get(error.code, 'the server will not answer this request')
    affects_all = error.code in _REFUSES_ALL or error.code < 400 or out_of_quota
    refusal = Refusal(message, field) if error.code in (400, 422) else None
    raise Failure(f'{what}; {remedy}', retryable=False, affects_all=affects_all, refusal=refusal)

  def clean(self, text: str) -> str:
    """Masks the key. For all text that leaves this class, after JSON's escapes are decoded."""
    return text.replace(self._key, '***') if len(self._key) >= _LONG_KEY else text


def _message_of(error: urllib.error.HTTPError) -> tuple[str, object, str | None]:
  """(message, code, param) of `{"error": {"message": ..., "code": ..., "param": ...}}`; else the whole text."""
  try:
    text = error.read1(_CHUNK).decode('utf-8', 'replace')
  except (OSError, http.client.HTTPException):
    text = ''
  try:
    found = json.loads(text)
    found = found.get('error', found)
    return str(found.get('message', text)), found.get('code'), found.get('param')
  except (ValueError, AttributeError, RecursionError):
    return text, None, None


def parse_retry_after(value: str | None) -> float | None:
  """Seconds, from a number of them or a date; None when the header is missing or is neither."""
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
  """The URL and the model of openai:URL#MODEL: ('http://127.0.0.1:8000/v1', 'Qwen2.5-Math-7B').

  UserError: when the name is anything else, or the address holds what must not be recorded.
  """
  form = 'give openai:URL#MODEL, such as openai:http://127.0.0.1:8000/v1#Qwen2.5-Math-7B'
  url, _, model = name.removeprefix(PREFIX).partition('#')
  if not name.isprintable():
    raise UserError(f'{name!r} holds characters that cannot be printed; {form}')
  if '@' in url or '?' in url:
    raise UserError(f'the address holds a key or a query, which records would show; put the key into {KEY}')
  try:
    parts = urllib.parse.urlsplit(url)
    parts.port  # noqa: B018 - a property that raises
    (parts.hostname or '').encode('idna')
  except ValueError as error:
    raise UserError(f'{url!r} is not an address ({error}); {form}') from None
  if not parts.path.isascii():
    quoted = urllib.parse.quote(parts.path)
    raise UserError(f'{url!r}: write what is not ASCII with percent signs, {quoted}')
  if parts.scheme not in ('http', 'https') or not parts.hostname or any(character.isspace() for character in url):
    raise UserError(f'{url!r} is not an http or https address; {form}')
  if not model:
    raise UserError(f'{name} does not name a model after #; {form}')
  return url.rstrip('/'), model
