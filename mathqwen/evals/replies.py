"""Reads what a server of the OpenAI API sends: one JSON object or a stream, its content a text or a list of parts.

read('{"choices": [{"message": {"content": "18"}, "finish_reason": "stop"}]}', limit=64)     Answer('18', ...)
read('data: {"choices": [{"delta": {"content": "18"}}]}\n\ndata: [DONE]\n', limit=64)        Answer('18', ...)
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping

# finish_reason of an answer that reached its limit, by vLLM and OpenAI, Gemini, Mistral and others; in lower case.
_AT_LIMIT = ('length', 'max_tokens', 'max_output_tokens', 'model_length')
# finish_reason when the server gave up: SGLang and vLLM, OpenRouter, DeepSeek.
_INTERRUPTED = ('abort', 'aborted', 'error', 'cancelled', 'insufficient_system_resource')
_WITHHELD = ('content_filter', 'safety', 'recitation')  # finish_reason when a filter ended it: OpenAI, Gemini
_THINKING_PARTS = ('thinking', 'reasoning', 'reasoning_text')
# Fields of a message: DeepSeek and vLLM, OpenRouter, Ollama.
_REASONING = ('reasoning_content', 'reasoning', 'thinking')
_STREAM = re.compile(r'\s*(?:data|event|id|retry)?:')
_SHOWN = 80  # characters of what is not an answer


@dataclasses.dataclass(frozen=True)
class Answer:
  """What a server answered."""

  text: str
  tokens: int | None  # as the server counts them; None when it does not say
  truncated: bool | None  # at its limit; None: the server says neither why the answer ended nor how long it is
  served_model: str | None  # the exact name behind an alias
  reasoning: str | None = None  # the thinking, of a server that sends it apart from the answer
  reasoning_tokens: int | None = None  # how many of `tokens` they are
  prompt_tokens: int | None = None
  changes: tuple[str, ...] = ()  # what of the request the server does not take: see `dialect`
  thinking_cut: bool = False  # whether the thinking was closed because it reached its budget
  filtered: bool = False  # whether a filter of the server ended it in the middle


@dataclasses.dataclass(frozen=True)
class Refusal:
  """A status of 400 or 422: what the server says, and the field of the request that it names."""

  message: str
  field: str | None


class Failure(Exception):
  """Raised instead of an answer.

  retryable: another try may succeed. affects_all: other problems would fail too. busy: the server only has too much to
  do. retry_after: the seconds that it asks to wait. refusal: of the request as it is.
  """

  def __init__(
    self,
    what: str,
    retryable: bool = True,
    affects_all: bool = False,
    busy: bool = False,
    retry_after: float | None = None,
    refusal: Refusal | None = None,
  ):
    super().__init__(what)
    self.retryable = retryable
    self.affects_all = affects_all or busy
    self.busy = busy
    self.retry_after = retry_after
    self.refusal = refusal


def read(body: str, limit: int, clean: Callable[[str], str] = str) -> Answer:
  """The answer in the body of a response. limit: of its tokens. clean: masks the key. Failure: when it is none."""
  if not body.strip():
    raise Failure('an empty answer')
  try:
    return _answer(_of_stream(body) if _STREAM.match(body) else json.loads(body), limit, clean)
  except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
    # '\/' is JSON for '/': a key that is written so must be masked too.
    start = ' '.join(clean(body.replace('\\/', '/'))[:_SHOWN].split())
    raise Failure(f'not an answer of the OpenAI API: {start!r}') from None


def _answer(reply: dict, limit: int, clean: Callable[[str], str]) -> Answer:
  choice = reply['choices'][0]
  message = choice.get('message') or {'content': choice['text']}
  text, thought = _text_and_thinking(message.get('content'))
  thought += _thinking_beside(message)
  reason = choice.get('finish_reason') or None
  if isinstance(reason, str) and reason.lower() in _INTERRUPTED:
    raise Failure(f'the server interrupted the answer (finish_reason {clean(reason)})')
  if text is None and isinstance(message.get('refusal'), str):
    text = message['refusal']
  filtered = isinstance(reason, str) and reason.lower() in _WITHHELD
  if text is None and (thought or filtered or reason == 'length'):
    text = ''  # truncated while it was thinking, or withheld
  if text is None or not isinstance(reason, str | None) or not (text or thought or reason):
    raise Failure('an answer without text')

  usage = reply.get('usage') or {}
  tokens = _count(usage.get('completion_tokens'))
  if reason is None:
    truncated = None if tokens is None else tokens >= limit
  else:
    truncated = reason.lower() in _AT_LIMIT
  served = reply.get('model')
  return Answer(
    text=clean(text),
    tokens=tokens,
    truncated=truncated,
    served_model=clean(served) if isinstance(served, str) else None,
    reasoning=clean(thought) or None,
    reasoning_tokens=_count((usage.get('completion_tokens_details') or usage).get('reasoning_tokens')),
    prompt_tokens=_count(usage.get('prompt_tokens')),
    filtered=filtered and bool(text),
  )


def _count(value: object) -> int | None:
  return value if type(value) is int and 0 <= value < 2**31 else None


def _text_and_thinking(content: object) -> tuple[str | None, str]:
  """(text, thinking) of a message's content, which is a text, nothing, or a list of parts."""
  if content is None or isinstance(content, str):
    return content, ''
  if not isinstance(content, list):
    raise Failure('an answer without text')
  text, thought = [], []
  for part in content:
    part = {'text': part} if isinstance(part, str) else part
    kind = part.get('type', 'text')
    inner, inner_thought = _text_and_thinking(
      next((part[key] for key in (kind, 'text', 'refusal') if key in part), None)
    )
    if inner is None:
      raise Failure(f'an answer with a part that is no text ({str(kind)[:_SHOWN]!r})')
    (thought if kind in _THINKING_PARTS else text).append(inner)
    thought.append(inner_thought)
  return ''.join(text), ''.join(thought)


def _thinking_beside(message: Mapping) -> str:
  """The thinking that a message, or a piece of one, has in a field of its own; '' for none."""
  content = next((message[name] for name in _REASONING if message.get(name)), '')
  return _text_and_thinking(content)[0] or ''


def _of_stream(body: str) -> dict:
  """The reply that a stream of events adds up to. Failure: when it ends in the middle."""
  reply: dict = {}
  parts: list = []
  text = thought = ''
  reason = None
  done = False
  for line in re.split(r'\r\n|\n|\r', body):  # not splitlines, which also splits at characters that texts hold
    if not line.startswith('data:'):
      continue
    data = line.removeprefix('data:').strip()
    if done := data == '[DONE]':
      break
    event = json.loads(data)
    if event.get('error'):
      raise ValueError  # `read` shows what the server says
    reply |= {key: event[key] for key in ('model', 'usage') if event.get(key)}
    for choice in event.get('choices') or []:
      if choice.get('index'):
        continue
      delta = choice.get('delta') or choice.get('message') or choice
      content = delta.get('content', delta.get('text'))
      if isinstance(content, list):
        parts += content
      else:
        text += content or ''
      thought += _thinking_beside(delta)
      reason = choice.get('finish_reason') or reason
  if not done and reason is None:
    raise Failure('the stream broke off')
  message = {'content': [*parts, text] if parts or text else None, 'reasoning_content': thought}
  return reply | {'choices': [{'message': message, 'finish_reason': reason}]}
