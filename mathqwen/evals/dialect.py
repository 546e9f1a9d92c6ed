"""Which fields of a request one server accepts, learnt from what it refuses.

After a 400 or 422 that names a field as unsupported, the field is left out or sent under its other name. A line reports
this, and records and scores keep it.
"""

import json
import re
import threading
from collections.abc import Callable, Mapping

from mathqwen.errors import UserError
from mathqwen.evals.replies import Refusal

_LIMIT = 'max_tokens'
_NEW_LIMIT = 'max_completion_tokens'  # of OpenAI's reasoning models
# Fields that may be left out: the answer is then sampled differently. The limit may only change its name.
_OPTIONAL = ('temperature', 'top_p', 'top_k', 'seed', 'stop')
_COMMON_WORDS = ('stop', 'seed')  # name a field only between quotes
_FLAGS = {
  'temperature': '--temperature',
  'top_p': '--top-p',
  'top_k': '--top-k',
  'seed': '--seed',
  _LIMIT: '--max-new-tokens',
  _NEW_LIMIT: '--max-new-tokens; the server is asked once by which name it takes it',
  'n': '--samples',
  'model': 'openai:URL#MODEL',
  'messages': '--prompt and --system',
  'prompt': '--prompt',
  'stop': '--prompt',
}
_UNSUPPORTED = re.compile(
  r"unsupported|n[o']t supported?|not support|unknown|unrecogni[sz]ed|unexpected|not permitted|not allowed|forbidden"
  r'|deprecated|only the default|cannot find field|extra (?:inputs|fields)|not implemented|cannot both|invalid argument'
  r'|must be (?:strictly )?(?:positive|greater than 0|> ?0)',
  re.IGNORECASE,
)


def parse_json(text: str) -> dict:
  """The object in the text of `--request-json`. UserError: when it is none."""
  try:
    fields = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise UserError(f'--request-json is not JSON ({error}); give an object, such as {{"min_p": 0.05}}') from None
  if not isinstance(fields, dict):
    raise UserError(f'--request-json is {type(fields).__name__}; give an object, such as {{"min_p": 0.05}}')
  return fields


class Dialect:
  """What one server accepts. Threads share one."""

  def __init__(self, extra: Mapping, tell: Callable[[str], None]):
    """extra: fields of every request; None leaves one out. tell: reports a line.

    UserError: when `extra` has what a flag decides.
    """
    for name, value in extra.items():
      if name in _FLAGS and not (value is None and name in (*_OPTIONAL, _LIMIT)):
        raise UserError(f'request_json has {name!r}, which {_FLAGS[name]} decides; leave it out there')
    self._extra = dict(extra)
    self._tell = tell
    self._lock = threading.Lock()
    self._left_out: list[str] = []
    self._new_limit = False

  def body(self, fields: Mapping) -> tuple[dict, tuple[str, ...]]:
    """(the request as the server takes it, what had to be changed)"""
    with self._lock:
      left_out, new_limit = list(self._left_out), self._new_limit
    changes = [f'{name} left out' for name in left_out if name in fields]
    body = {name: value for name, value in {**fields, **self._extra}.items() if name not in left_out}
    body = {name: value for name, value in body.items() if value is not None}
    if new_limit and _LIMIT in body:
      body[_NEW_LIMIT] = body.pop(_LIMIT)
      changes.append(f'{_NEW_LIMIT} for {_LIMIT}')
    return body, tuple(changes)

  def learn(self, sent: Mapping, refusal: Refusal) -> bool:
    """Whether the server refused a field of `sent` that can be left out or renamed, so that it may be asked again."""
    if not _UNSUPPORTED.search(refusal.message):
      return False
    named = [name for name in (*_OPTIONAL, _LIMIT) if name in sent and name not in self._extra]
    found = [name for name in named if name == refusal.field] or sorted(
      (name for name in named if _place(name, refusal.message) >= 0), key=lambda name: _place(name, refusal.message)
    )
    if not found:
      return False
    # `temperature` and `top_p` cannot both be specified: the first is the one that matters.
    name = found[-1] if 'both' in refusal.message else found[0]
    with self._lock:
      if name == _LIMIT:
        is_new, self._new_limit = not self._new_limit, True
        what = f'{_NEW_LIMIT} is sent for {_LIMIT}'
      else:
        is_new = name not in self._left_out
        if is_new:
          self._left_out.append(name)
        what = f'{name} is left out, so the server decides it'
    if is_new:
      self._tell(f'the server refuses {name} ({refusal.message[:200]}): {what}')
    return True


def _place(name: str, message: str) -> int:
  """Where a message names a field; -1 when it does not."""
  pattern = rf"""(?<=['"`]){name}(?=['"`])""" if name in _COMMON_WORDS else rf'(?<!\w){name}(?!\w)'
  found = re.search(pattern, message)
  return found.start() if found else -1
