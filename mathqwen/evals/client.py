"""One request to a server of the OpenAI API, which vLLM and others speak: an answer, or why there is none.

openai:http://127.0.0.1:8000/v1#Qwen2.5-Math-7B     chat prompts: POST http://127.0.0.1:8000/v1/chat/completions
                                                    text prompts: POST http://127.0.0.1:8000/v1/completions

The key is read from the environment (OPENAI_API_KEY; local servers need none) and is sent nowhere but to that address:
redirects are not followed, and what a server says is searched for it before it is shown or recorded.
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

import mathqwen
from mathqwen.errors import UserError

PREFIX = 'openai:'
KEY = 'OPENAI_API_KEY'
MAX_BODY = 2**25  # bytes of one answer
_LONG_KEY = 8  # characters; shorter ones are names such as EMPTY, which an answer may contain
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


class Failure(Exception):
  """In place of an answer. again: it may pass; of_all: other problems would fare no better; busy: the server only has
  too much to do; wait: seconds that it asks for."""

  def __init__(self, what: str, again=True, of_all=False, busy=False, wait: float | None = None):
    super().__init__(what)
    self.again, self.of_all, self.busy, self.wait = again, of_all or busy, busy, wait


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
        socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # ssl's own would take its state from under the reader

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


class Client:
  """`timeout`: seconds for a whole request."""

  def __init__(self, name: str, timeout: float):
    self.url, self._model = parse(name)
    self._timeout, self._key = timeout, os.environ.get(KEY, '').strip()
    if not all('!' <= c <= '~' for c in self._key):
      raise UserError(f'{KEY} holds characters that no key has (spaces, line ends, accents); set it again')
    self._open = urllib.request.build_opener(_NoRedirects, _Connections).open

  def unencrypted(self) -> str | None:
    """The host to which the key goes in the clear."""
    host = urllib.parse.urlsplit(self.url)
    local = host.hostname in ('localhost', '127.0.0.1', '::1')
    return host.hostname if self._key and host.scheme == 'http' and not local else None

  def ask(self, prompt: dict, max_new_tokens: int) -> Answer:
    """The greedy answer to `{'messages': turns}` or `{'prompt': text}`, with `stop` if wanted. Raises Failure."""
    body = {'model': self._model, **prompt, 'temperature': 0, 'max_tokens': max_new_tokens}
    path = 'chat/completions' if 'messages' in prompt else 'completions'
    request = urllib.request.Request(f'{self.url}/{path}', json.dumps(body).encode(), self._headers())
    return self._parse(self._exchange(request), 'messages' in prompt)

  def _headers(self) -> dict:
    headers = {'Content-Type': 'application/json', 'User-Agent': f'mathqwen/{mathqwen.__version__}'}
    return headers | ({'Authorization': f'Bearer {self._key}'} if self._key else {})

  def _exchange(self, request: urllib.request.Request) -> str:
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
          raise Failure(f'no answer within {self._timeout:g} seconds') from None
        self._unreachable(error)
      if deadline.passed.is_set():  # what came may look whole
        raise Failure(f'no answer within {self._timeout:g} seconds')
    return text

  def _unreachable(self, error: OSError | http.client.HTTPException):
    address = urllib.parse.urlsplit(self.url)
    proxied = urllib.request.getproxies().get(address.scheme) and not urllib.request.proxy_bypass(address.netloc)
    way = f' by the proxy that {address.scheme}_proxy names' if proxied else ''  # whose address may hold a password
    if not isinstance(error, urllib.error.URLError):
      raise Failure(f'the connection{way} broke ({type(error).__name__})') from None
    what = f'cannot be reached{way} ({error.reason})'
    if isinstance(error.reason, ssl.SSLCertVerificationError):
      remedy = 'SSL_CERT_FILE names the certificates that are trusted'
      raise Failure(f'{what}; {remedy}', again=False, of_all=True) from None
    raise Failure(what, of_all=True) from None

  def _body(self, response) -> str:
    parts, size = [], 0
    while part := response.read1(65536):
      parts.append(part)
      size += len(part)
      if size > MAX_BODY:
        raise Failure(f'an answer of more than {MAX_BODY:,} bytes')
    return b''.join(parts).decode('utf-8', 'replace')

  def _refused(self, error: urllib.error.HTTPError):
    try:
      text = error.read1(65536).decode('utf-8', 'replace')
    except (OSError, http.client.HTTPException):
      text = ''
    said = text
    try:
      found = json.loads(text)
      found = found.get('error', found)
      said, code = found.get('message', text), found.get('code')
    except (ValueError, AttributeError, RecursionError):
      code = None
    said = self.clean(' '.join(str(said).split()))
    what = self.clean(f'{error.code} {error.reason}') + (f' ({said[:300]})' if said else '')
    if error.code in (429, 503) and code != 'insufficient_quota':
      raise Failure(what, busy=True, wait=retry_after(error.headers.get('Retry-After')))
    if error.code >= 500 or error.code in (408, 409):
      raise Failure(what)
    if 300 <= error.code < 400 and error.headers.get('Location'):
      target = self.clean(error.headers['Location'])
      raise Failure(f'it redirects to {target}, where the key is not sent; give that address', again=False, of_all=True)
    remedy = _REMEDIES.get(error.code, 'the server will not answer this request')
    of_all = error.code in _OF_ALL or error.code < 400 or code == 'insufficient_quota'
    raise Failure(f'{what}; {remedy}', again=False, of_all=of_all)

  def _parse(self, text: str, chat: bool) -> Answer:
    if not text.strip():
      raise Failure('an empty answer')
    try:
      said = json.loads(text)
      choice = said['choices'][0]
      reason, content = choice['finish_reason'], choice['message']['content'] if chat else choice['text']
      tokens, served = (said.get('usage') or {}).get('completion_tokens'), said.get('model')
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
      said = ' '.join(self.clean(text.replace('\\/', '/'))[:80].split())
      raise Failure(f'not an answer of the OpenAI API: {said!r}') from None
    if content is None and reason in ('length', 'content_filter'):
      content = ''  # cut off while it was thinking, or withheld
    if not isinstance(content, str) or not isinstance(reason, str):
      raise Failure('an answer without text or finish_reason')
    tokens = tokens if type(tokens) is int and 0 <= tokens < 2**31 else None
    served = self.clean(served) if isinstance(served, str) else None
    return Answer(self.clean(content), tokens, reason == 'length', served)

  def clean(self, text: str) -> str:
    """For whatever leaves this class: JSON's escapes are undone by then."""
    return text.replace(self._key, '***') if len(self._key) >= _LONG_KEY else text


def retry_after(value: str | None) -> float | None:
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
