"""Functions, filters and operators that `engine.py` gives a template: as in transformers, with origins and limits."""

import functools
import operator
from collections.abc import Mapping, Sequence

import jinja2
from jinja2.sandbox import SandboxedFormatter

from mathqwen.chat import traced
from mathqwen.chat.traced import LimitError, Text
from mathqwen.chat.traced_values import to_json

MAX_BITS = 4_096  # of a number that a template computes


class TemplateDict:
  """`dict` in a template: a call, and nothing of the class."""

  def __call__(self, *args, **kwargs):
    return dict(*args, **kwargs)


class TemplateNamespace(jinja2.utils.Namespace):
  """`namespace` in a template, without names that begin with an underscore."""

  def __init__(*args, **kwargs):
    attributes = dict(*args[1:], **kwargs)
    for name in attributes:
      _refuse_private(name)
    jinja2.utils.Namespace.__init__(args[0], attributes)

  def __setitem__(self, name, value):
    _refuse_private(name)
    super().__setitem__(name, value)


def _refuse_private(name) -> None:
  if isinstance(name, str) and name.startswith('_'):
    raise jinja2.exceptions.SecurityError(f'a namespace cannot hold {name!r}')


class Refusal(jinja2.exceptions.TemplateError):
  """raise_exception(...) of a template: its own words about the conversation."""


def raise_exception(message) -> None:
  raise Refusal(str.__str__(message) if isinstance(message, str) else str(message))


def checked(name: str, left, right):
  """left OPERATOR right, within the limits. Text checks itself."""
  if name == '+' and isinstance(left, list | tuple):
    _refuse_long(len(left) + len(right) if isinstance(right, list | tuple) else 0)
  elif name == '*':
    for several, times in ((left, right), (right, left)):
      if isinstance(several, list | tuple) and isinstance(times, int):
        _refuse_long(len(several) * max(times, 0))
      elif isinstance(several, str) and isinstance(times, int):
        traced.charge(len(several) * max(times, 0))
  elif name == '**' and isinstance(right, int) and abs(right) > MAX_BITS:
    raise LimitError(f'it computes a power of {right}')
  result = OPERATORS[name](left, right)
  if isinstance(result, int) and result.bit_length() > MAX_BITS:
    raise LimitError(f'it computes a number of {result.bit_length():,} bits')
  return result


OPERATORS = {'+': operator.add, '*': operator.mul, '**': operator.pow, '%': operator.mod}


def _refuse_long(elements: int) -> None:
  if elements > traced.MAX_CONTAINER:
    raise LimitError(f'it makes a list of {elements:,} elements')


def traced_filter(name: str, function):
  """A filter of Jinja's whose result has the origin of what it was given."""

  @functools.wraps(function)  # keeps the attribute by which Jinja passes the context or the environment
  def wrapped(*args, **kwargs):
    for value in (*args, *kwargs.values()):
      # widths, indents, numbers of columns
      if isinstance(value, int) and abs(value) > traced.MAX_CONTAINER:
        raise LimitError(f'it calls the filter {name} with the number {value}')
    result = function(*args, **kwargs)
    if isinstance(result, str) and type(result) is not Text:
      traced.charge(len(result))
      return traced.blend(result, [value for value in args if not isinstance(value, jinja2.Environment)], kwargs)
    return result

  return wrapped


def _join(value, d='', attribute=None):
  if attribute is not None:
    value = [item[attribute] if isinstance(item, Mapping) else getattr(item, attribute) for item in value]
  separator = d if type(d) is Text else traced.literal(str(d))
  return separator.join(map(traced.printed, value))


def _indent(s, width=4, first=False, blank=False):
  if isinstance(width, int) and width > 1000:
    raise LimitError(f'it indents by {width}')
  indention = width if isinstance(width, str) else traced.literal(' ' * width)
  lines = (traced.known(s) + traced.literal('\n')).splitlines()
  result = []
  for index, line in enumerate(lines):
    if index:
      result.append(traced.literal('\n'))
    if (index and (line or blank)) or (not index and first):
      result.append(indention)
    result.append(line)
  return traced.joined(result)


FILTERS = {
  'string': traced.printed,
  'tojson': to_json,
  'join': _join,
  'indent': _indent,
  'safe': traced.printed,  # nothing is escaped here, so nothing is marked as safe from it
}


class TracedFormatter(SandboxedFormatter):
  """text.format(...): fields keep their origins."""

  def pieces(self, form: Text, args: Sequence, kwargs: Mapping) -> Text:
    pieces = []
    automatic = 0
    for text, field, spec, conversion in self.parse(form):
      if text:
        pieces.append(traced.blend(text, form))
      if field is None:
        continue
      if field == '' or field[0] in '.[':
        field = f'{automatic}{field}'
        automatic += 1
      value, _ = self.get_field(field, args, kwargs)
      value = self.convert_field(value, conversion)
      if '{' in spec:
        raise LimitError('it formats with a width that it computes')
      digits = ''.join(c if c.isdigit() else ' ' for c in spec).split()
      traced.charge(sum(int(number[:12]) for number in digits))
      if not spec:
        pieces.append(traced.printed(value))
      else:
        plain = str.__str__(value) if isinstance(value, str) else value
        pieces.append(traced.blend(self.format_field(plain, str.__str__(spec)), value))
    return traced.joined(pieces)
