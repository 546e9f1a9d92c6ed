"""Chat templates in Jinja, as transformers sets it up, whose output knows where each character comes from.

Jinja compiles a template to Python. Here the compiler writes each constant as a `Text` (traced.py) that carries the
turn under way, joins texts with their origins, and tells the environment which message a loop has come to.

A template is someone else's program. It runs in Jinja's sandbox, makes at most MAX_STEPS turns of loops and calls of
macros, and no string, list or number beyond a limit.
"""

import contextlib
import datetime
import threading
import types
from collections.abc import Mapping, Sequence

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mathqwen.chat import engine_functions as functions
from mathqwen.chat import traced, traced_values
from mathqwen.chat.traced import LimitError, Text
from mathqwen.chat.traced_values import GivenDict, Message

MAX_SOURCE = 1_000_000  # characters of a template
MAX_STEPS = 1_000_000  # turns of all loops and calls of macros in one rendering

_DICT_METHODS = frozenset(dir(dict))
# Methods of Text that need no more than being called: all but format, whose fields reach into what they are given.
_TEXT_METHODS = frozenset(name for name in dir(str) if name[0] != '_' and not name.startswith('format'))
# A rendering keeps its turn and its budget in the environment, and Python renders one at a time anyway.
_one_at_a_time = threading.RLock()


class TracedGenerator(CodeGenerator):
  """Writes Python in which no constant loses its origin."""

  def __init__(self, *args, **kwargs):
    super().__init__(*args, **kwargs)
    self._plain = 0  # > 0 inside of comparisons and subscripts, whose constants are never written out
    self._loops = 0

  def _constant(self, text: str) -> None:
    self.write(repr(text) if self._plain else f'environment.literals[{self.environment.constant(text)}]')

  def visit_Const(self, node: nodes.Const, frame: Frame) -> None:
    self._value(node.as_const(frame.eval_ctx))

  def _value(self, value) -> None:
    """Writes a constant; the compiler has folded lists and dicts of constants into one."""
    if isinstance(value, str):
      self._constant(value)
    elif isinstance(value, list | tuple):
      self.write('[' if isinstance(value, list) else '(')
      for item in value:
        self._value(item)
        self.write(', ')
      self.write(']' if isinstance(value, list) else ')')
    elif isinstance(value, dict):
      self.write('{')
      for key, item in value.items():
        self._value(key)
        self.write(': ')
        self._value(item)
        self.write(', ')
      self.write('}')
    else:
      self.write(repr(value))

  def visit_TemplateData(self, node: nodes.TemplateData, frame: Frame) -> None:
    self._constant(node.data)

  def _output_const_repr(self, group) -> str:
    return f'environment.literals[{self.environment.constant("".join(group))}]'

  def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize) -> None:
    self.write('environment.printed(')

  def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
    self.write('environment.concatenated((')
    for part in node.nodes:
      self.visit(part, frame)
      self.write(', ')
    self.write('))')

  def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
    self._plain += 1
    super().visit_Compare(node, frame)
    self._plain -= 1

  def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
    if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
      self.write('environment.getitem(')
      self.visit(node.node, frame)
      self.write(f', {node.arg.value!r})')
    else:
      super().visit_Getitem(node, frame)

  def visit_For(self, node: nodes.For, frame: Frame) -> None:
    target = node.target if isinstance(node.target, nodes.Name) else None
    seen = nodes.Name(target.name, 'load') if target else nodes.Const(None)
    mark = nodes.ExprStmt(seen, lineno=node.lineno)
    mark.environment_method = 'entered'
    node.body.insert(0, mark)
    self.writeline('environment.loop_begins()')
    self._loops += 1
    super().visit_For(node, frame)
    self._loops -= 1
    self.writeline('environment.loop_ends()')

  def visit_ExprStmt(self, node: nodes.ExprStmt, frame: Frame) -> None:
    method = getattr(node, 'environment_method', None)
    if method is None:
      super().visit_ExprStmt(node, frame)
    else:
      self.writeline(f'environment.{method}(')
      self.visit(node.node, frame)
      self.write(')')

  def visit_Assign(self, node: nodes.Assign, frame: Frame) -> None:
    super().visit_Assign(node, frame)
    if self._loops and isinstance(node.target, nodes.Name):
      self.writeline('environment.assigned(')
      self.visit(nodes.Name(node.target.name, 'load'), frame)
      self.write(')')


class GenerationMarks(Extension):
  """{% generation %} ... {% endgeneration %}: what is inside is trained on."""

  tags = {'generation'}

  def parse(self, parser) -> nodes.CallBlock:
    self.environment.has_marks = True
    line = next(parser.stream).lineno
    body = parser.parse_statements(['name:endgeneration'], drop_needle=True)
    return nodes.CallBlock(self.call_method('_marked'), [], [], body).set_lineno(line)

  def _marked(self, caller) -> Text:
    text = traced.known(caller())
    return Text(text, tuple((length, where | traced.MARKED) for length, where in text._runs))


class TracedEnvironment(ImmutableSandboxedEnvironment):
  """The environment of one template: what transformers gives it, with origins and limits."""

  code_generator_class = TracedGenerator
  intercepted_binops = frozenset(functions.OPERATORS)

  def __init__(self, date: datetime.date):
    super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationMarks, loopcontrols])
    midnight = datetime.datetime.combine(date, datetime.time())
    self.globals |= {
      'raise_exception': functions.raise_exception,
      'strftime_now': lambda form: traced.literal(midnight.strftime(form)),
      'dict': functions.TemplateDict(),
      'namespace': functions.TemplateNamespace,
    }
    del self.globals['lipsum']  # random text
    for name, function in self.filters.items():
      self.filters[name] = functions.traced_filter(name, function)
    self.filters |= functions.FILTERS
    self.has_marks = False
    self._constants: dict[str, int] = {}  # text -> its place in `literals`; filled by the compiler
    self._tables: dict[int, list[Text]] = {}  # turn -> `literals`

  def call_binop(self, context, name, left, right):
    if name == '+' and type(left) is Text:  # most of them
      return left + right
    return functions.checked(name, left, right)

  # While compiling.
  def constant(self, text: str) -> int:
    """The index of a constant in `literals`."""
    return self._constants.setdefault(text, len(self._constants))

  # While rendering.
  def begin(self) -> None:
    self.steps = 0
    self.stack: list[tuple[int, bool]] = []  # (turn, whether the loop is over messages) of the loops around
    self.over_messages = False
    self._turn(-1)

  def _turn(self, turn: int) -> None:
    self.turn = turn
    table = self._tables.get(turn)
    if table is None:
      where = traced.origin(traced.LITERAL, turn)
      table = [Text(text, ((len(text), where),)) for text in self._constants]
      self._tables[turn] = table
    self.literals = table

  def loop_begins(self) -> None:
    self.stack.append((self.turn, self.over_messages))
    self.over_messages = False

  def loop_ends(self) -> None:
    turn, self.over_messages = self.stack.pop()
    if turn != self.turn:
      self._turn(turn)

  def count(self) -> None:
    self.steps += 1
    if self.steps > MAX_STEPS:
      raise LimitError(f'it takes more than {MAX_STEPS:,} steps')

  def entered(self, value) -> None:
    """A loop has come to `value`."""
    self.count()
    if type(value) is Message:
      self.over_messages = True
      self._turn(value._turn)

  def assigned(self, value) -> None:
    """{% set x = value %} inside of a loop: a loop over indices takes its message so."""
    if type(value) is Message and not self.over_messages:
      self._turn(value._turn)

  def printed(self, value) -> Text:
    if type(value) is Text:
      return value
    if isinstance(value, jinja2.Undefined):
      value = str(value)
    return traced.printed(value, self.turn)

  def concatenated(self, parts) -> Text:
    return traced.joined(map(self.printed, parts))

  concat = staticmethod(traced.joined)

  def call(self, context, obj, *args, **kwargs):
    self.count()
    if type(obj) is types.MethodType and type(obj.__self__) is Text:
      kwargs.pop('_loop_vars', None)  # Jinja's own
      kwargs.pop('_block_vars', None)
      return obj(*args, **kwargs)
    return super().call(context, obj, *args, **kwargs)

  def getattr(self, obj, attribute):
    # The same as Jinja's, without its checks where they cannot fail: these are most of the time of a rendering.
    kind = type(obj)
    if kind is Message or kind is GivenDict:
      if attribute not in _DICT_METHODS:
        return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
    elif kind is Text:
      if attribute in _TEXT_METHODS:
        return getattr(obj, attribute)
    elif kind is functions.TemplateNamespace and attribute[0] != '_':
      with contextlib.suppress(AttributeError):
        return getattr(obj, attribute)
    return super().getattr(obj, attribute)

  def wrap_str_format(self, value):
    owner = getattr(value, '__self__', None)
    if not isinstance(owner, str) or getattr(value, '__name__', '') not in ('format', 'format_map'):
      return super().wrap_str_format(value)
    formatter = functions.TracedFormatter(self)
    if value.__name__ == 'format_map':
      return lambda mapping: formatter.pieces(traced.known(owner), (), mapping)
    return lambda *args, **kwargs: formatter.pieces(traced.known(owner), args, kwargs)


class Engine:
  """One compiled template."""

  def __init__(self, source: str, date: datetime.date):
    """LimitError: when the source is too long. jinja2.TemplateError, SyntaxError: when it is not a template."""
    if len(source) > MAX_SOURCE:
      raise LimitError(f'it has {len(source):,} characters, more than {MAX_SOURCE:,}')
    self._traced = TracedEnvironment(date)
    self._traced_template = self._traced.from_string(source)
    self.marked = self._traced.has_marks

  @property
  def constants(self) -> list[str]:
    """The texts that the template itself contains."""
    return list(self._traced._constants)

  @property
  def turn(self) -> int:
    """The message at which the last rendering ended; -1 for none."""
    return self._traced.turn

  def render(self, messages: Sequence[Mapping], variables: Mapping, generation_prompt: bool = False) -> Text:
    """The text of the conversation.

    variables: `tools`, bos_token and the like, and what else the template may read.
    LimitError, Refusal, or whatever else a template raises.
    """
    with _one_at_a_time:
      self._traced.begin()
      values = {}
      for name, value in variables.items():
        if name.endswith('_token') and isinstance(value, str):
          values[name] = traced.literal(value)
        else:
          values[name] = traced_values.given(value, traced.GIVEN)
      wrapped = [traced_values.message(fields, turn) for turn, fields in enumerate(messages)]
      traced.reset_budget(sum(map(traced_values.size, [*wrapped, *values.values()])))
      return traced.known(
        self._traced_template.render(
          messages=wrapped, documents=None, add_generation_prompt=generation_prompt, **({'tools': None} | values)
        )
      )
