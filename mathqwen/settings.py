"""What a setting knows about itself: its help, its type, what it may be, and whether it may change on resume.

`setting(...)` declares a field of a configuration dataclass (`ModelConfig` and those of `config.py`):

  warmup_steps: int = setting(1_430, help='steps to the peak', at_least=0)

Everything else reads it there: the checks of a configuration, `--set`, `--help`, `mathqwen configs NAME`,
configs/README.md, and what a run may change when it continues in its --workdir.
"""

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any

from mathqwen import files
from mathqwen.errors import UserError

FIXED, FREE = 'fixed', 'free'


@dataclasses.dataclass(frozen=True)
class Conditional:
  """A setting that a run may change on resume, under a condition."""

  condition: str  # in words; it follows 'yes, when '
  refusal: Callable[..., str]  # (experiment of the checkpoint, new experiment, newest step) -> why not; '' when it may


@dataclasses.dataclass(frozen=True)
class Setting:
  """The declaration of one setting. Bounds and choices apply to each element of a tuple, and never to None."""

  help: str
  choices: tuple[str, ...] = ()
  at_least: float | None = None
  at_most: float | None = None
  above: float | None = None
  below: float | None = None
  # 'path' for what names a file or folder; 'model' and 'data' for what may also be on the hub
  path: str = ''
  finite: bool = True  # whether a number must be finite
  remedy: str = ''  # what to do about a value out of bounds, where the bounds do not say it
  on_resume: str | Conditional = FIXED  # whether a run may continue with another value: FIXED, FREE or Conditional
  changes_weights: bool = True  # False: training gives the same weights with any value, up to float rounding
  # Filled in by `declared`, from the dataclass
  kind: Any = None
  default: Any = None
  required: bool = False  # it has no default

  def check(self, name: str, value: object) -> None:
    """UserError when `value` has another type or is out of bounds. name: of the setting, for the message."""
    shown = repr(value) if len(repr(value)) <= 200 else f'{repr(value)[:197]}...'
    if not _has_type(value, self.kind):
      raise UserError(f'{name} is {shown}: it must be {type_name(self.kind)}')
    values = value if isinstance(value, tuple) else (value,)
    if self.path:
      self._check_paths(name, values)
    if all(self._allows(x) for x in values):
      return
    each = 'each ' if isinstance(value, tuple) else 'it '
    hint = f'; {self.remedy}' if self.remedy else ''
    if self.choices and not hint:
      hint = did_you_mean(str(value), self.choices)
    raise UserError(f'{name} is {shown}: {each}must be {self.allowed()}{hint}')

  def _check_paths(self, name: str, values: tuple) -> None:
    for value in values:
      try:
        files.check_scheme(value or '', may_be_on_hub=self.path != 'path')
      except UserError as error:
        raise UserError(f'{name}: {error}') from None

  def _allows(self, value: Any) -> bool:
    if value is None:
      return True
    if self.choices:
      return value in self.choices
    if isinstance(value, bool | str):
      return True
    try:
      value = float(value)
    except OverflowError:  # a whole number from JSON may be larger than any float
      return False
    # Written so that NaN, for which every comparison is false, is refused.
    return (
      not math.isnan(value)
      and (math.isfinite(value) or not self.finite)
      and (self.at_least is None or value >= self.at_least)
      and (self.at_most is None or value <= self.at_most)
      and (self.above is None or value > self.above)
      and (self.below is None or value < self.below)
    )

  def allowed(self) -> str:
    """What the value may be: 'one of a, b', 'from 0 to 1', 'at least 0 and finite'; '' for any value of the type."""
    if self.choices:
      return f'one of {", ".join(self.choices)}'
    if self.at_least is not None and self.at_most is not None:
      return f'from {self.at_least} to {self.at_most}'
    parts = []
    for word, bound in (('at least', self.at_least), ('above', self.above)):
      if bound is not None:
        parts.append(f'{word} {bound}')
    for word, bound in (('at most', self.at_most), ('below', self.below)):
      if bound is not None:
        parts.append(f'{word} {bound}')
    has_upper_bound = self.at_most is not None or self.below is not None
    if parts and self.finite and not has_upper_bound and _element(self.kind) is float:
      parts.append('finite')
    return ' and '.join(parts)

  def resume(self) -> str:
    """Whether the value may change when a run continues: 'yes', 'no', or 'yes, when ...'."""
    if isinstance(self.on_resume, Conditional):
      return f'yes, when {self.on_resume.condition}'
    return 'yes' if self.on_resume == FREE else 'no'

  def parse(self, name: str, text: str) -> object:
    """The value that `text`, as given on a command line, stands for. UserError when it is not of the type."""
    return _parse_value(name, self.kind, text)


def setting(
  default: Any = dataclasses.MISSING,
  *,
  help: str,
  changes_weights: bool = True,
  on_resume: str | Conditional | None = None,
  **rules: Any,
) -> Any:
  """A field of a configuration dataclass, with the `Setting` that describes it. Arguments: those of `Setting`.

  A setting that does not change the weights may change on resume, unless `on_resume` says otherwise.
  """
  if on_resume is None:
    on_resume = FIXED if changes_weights else FREE
  declaration = Setting(help, changes_weights=changes_weights, on_resume=on_resume, **rules)
  return dataclasses.field(default=default, metadata={'setting': declaration})


@functools.cache
def declared(cls: type, prefix: str = '') -> dict[str, Setting]:
  """{'train.steps': Setting, ...}: every setting of a configuration dataclass, and of those inside it."""
  found = {}
  hints = typing.get_type_hints(cls)
  for field in dataclasses.fields(cls):
    name, kind = prefix + field.name, hints[field.name]
    if dataclasses.is_dataclass(kind):
      found |= declared(kind, f'{name}.')
    else:
      required = field.default is dataclasses.MISSING
      default = None if required else field.default
      found[name] = dataclasses.replace(field.metadata['setting'], kind=kind, default=default, required=required)
  return found


def check_fields(config: Any, prefix: str = '') -> None:
  """UserError for the first field of the dataclass `config` that its declaration does not allow.

  Fields that are configurations themselves check their own.
  """
  for name, declaration in declared(type(config), prefix).items():
    field = name.removeprefix(prefix)
    if '.' not in field:
      declaration.check(name, getattr(config, field))


def to_flat(config: Any, prefix: str = '') -> dict[str, object]:
  """{'train.steps': 50000, ...}: the value of every setting of a configuration dataclass, by its dotted name."""
  flat = {}
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      flat |= to_flat(value, f'{prefix}{field.name}.')
    else:
      flat[prefix + field.name] = value
  return flat


def replace_fields(config: Any, changes: dict[str, object]) -> Any:
  """The dataclass `config` with {'a.b': value} replaced at any depth, in one step: the result is checked as a whole."""
  own: dict[str, object] = {}
  nested: dict[str, dict] = {}
  for name, value in changes.items():
    head, _, rest = name.partition('.')
    if rest:
      nested.setdefault(head, {})[rest] = value
    else:
      own[head] = value
  for head, changes_below in nested.items():
    own[head] = replace_fields(getattr(config, head), changes_below)
  return dataclasses.replace(config, **own)


def from_dict(cls: type, values: dict, prefix: str = '') -> Any:
  """The configuration dataclass `cls` with `values`, as JSON holds them. ValueError for a setting it does not have."""
  if not isinstance(values, dict):
    raise ValueError(f'{prefix or "it"} is {type(values).__name__}')
  hints = typing.get_type_hints(cls)
  if unknown := set(values) - set(hints):
    raise ValueError(f'unknown setting {prefix}{sorted(unknown)[0]}')
  found = {}
  for name, value in values.items():
    if dataclasses.is_dataclass(hints[name]):
      found[name] = from_dict(hints[name], value, f'{prefix}{name}.')
    else:
      found[name] = tuple(value) if isinstance(value, list) else value
  return cls(**found)


def did_you_mean(name: str, names: Iterable[str]) -> str:
  """'; did you mean ...?' with the nearest of `names`; '' when none is near."""

  def initials(dotted: str) -> str:
    return ''.join(word[0] for word in dotted.split('.')[-1].split('_') if word)

  names = list(names)
  close = [candidate for candidate in names if initials(candidate) == name.split('.')[-1]]  # lr is learning_rate
  close = close or difflib.get_close_matches(name, names, n=1, cutoff=0.0)
  return f'; did you mean {close[0]!r}?' if close else ''


def type_name(kind: Any) -> str:
  """A type as a user would say it: 'a whole number', 'text or None'."""
  if isinstance(kind, types.UnionType):
    return ' or '.join(type_name(part) for part in typing.get_args(kind))
  if typing.get_origin(kind) is tuple:
    return f'a tuple, each element {type_name(_element(kind))}'
  return {int: 'a whole number', float: 'a number', str: 'text', bool: 'true or false', types.NoneType: 'None'}[kind]


def _element(kind: Any) -> Any:
  """The type of a tuple's elements; of `X | None`, X; otherwise the type itself."""
  if typing.get_origin(kind) is tuple or isinstance(kind, types.UnionType):
    return next(part for part in typing.get_args(kind) if part is not types.NoneType)
  return kind


def _has_type(value: object, kind: Any) -> bool:
  if isinstance(kind, types.UnionType):
    return any(_has_type(value, part) for part in typing.get_args(kind))
  if typing.get_origin(kind) is tuple:
    return isinstance(value, tuple) and all(_has_type(x, _element(kind)) for x in value)
  if isinstance(value, bool):  # which Python counts as an int
    return kind is bool
  return isinstance(value, int | float if kind is float else kind)


def _parse_value(name: str, kind: Any, text: str) -> Any:
  """`Setting.parse` for the type `kind`. `text or None` gives None for 'None', 'none' and the empty text."""
  if isinstance(kind, types.UnionType):
    return None if text in ('None', 'none', '') else _parse_value(name, _element(kind), text)
  if typing.get_origin(kind) is tuple:
    return tuple(_parse_value(name, _element(kind), part.strip()) for part in text.split(',') if part.strip())
  if kind is str:
    return text
  if kind is bool:
    if text.lower() not in ('true', 'false'):
      raise UserError(f'--set {name}={text}: write true or false')
    return text.lower() == 'true'
  try:
    return kind(text.replace('_', '') if kind is int else text)
  except ValueError:
    raise UserError(f'--set {name}={text}: it must be {type_name(kind)}') from None
