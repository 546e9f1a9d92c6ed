"""The pickle inside a file of `torch.save`, read without running anything: names of tensors, and where their bytes are.

A pickle is a program for a small machine with a stack, and its instructions can call any function of any module. Here
runs a machine that knows the instructions of a table of tensors, and of all functions only those in `_MAKERS`, which
are its own: they build the records below. Anything else ends the reading with the name of what was asked for.
"""

import dataclasses
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO

_MOST_INSTRUCTIONS = 500_000  # 723 tensors, those of a 70B model, take 40,000
_LONGEST_NAME = 500
# Class of a storage in torch -> dtype as in a safetensors header, bytes of an element
STORAGES = {
  'FloatStorage': ('F32', 4),
  'BFloat16Storage': ('BF16', 2),
  'HalfStorage': ('F16', 2),
  'DoubleStorage': ('F64', 8),
  'LongStorage': ('I64', 8),
  'IntStorage': ('I32', 4),
  'ShortStorage': ('I16', 2),
  'CharStorage': ('I8', 1),
  'ByteStorage': ('U8', 1),
  'BoolStorage': ('BOOL', 1),
}


class Unsafe(ValueError):
  """The pickle asks for a function that could do anything. The text names it."""


class NoTable(ValueError):
  """The file is whole, and holds something else than tensors by their names. The text names it, and the remedy."""


@dataclasses.dataclass(frozen=True)
class Storage:
  """A run of elements, which several tensors may share. key: the name of its member in the zip file."""

  dtype: str
  key: str
  elements: int


@dataclasses.dataclass(frozen=True)
class TensorView:
  """A tensor: element `offset` of its storage is its first, and `strides` are counted in elements."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


def load(stream: BinaryIO) -> Any:
  """The value of the next pickle of a stream, which is read up to its end: plain values, Storage and TensorView.

  Unsafe: when it asks for anything else. ValueError: when it is damaged.
  """
  try:
    return _Machine().run(stream)
  except (IndexError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f'its pickle is damaged ({type(error).__name__})') from None


def table_of_tensors(found: Any) -> dict[str, TensorView]:
  """`found`, which `load` returned. NoTable: when it is not a table of tensors by their names."""
  if not isinstance(found, dict):
    raise NoTable(f'holds {_kind(found)}, not a table of tensors: save the state_dict of the model alone')
  if long := next((name for name in found if len(name) > _LONGEST_NAME), None):
    raise ValueError(f'it has a name of {len(long):,} characters, as no tensor has')
  others = [name for name, value in found.items() if not isinstance(value, TensorView)]
  if others:
    raise NoTable(
      f'holds {_kind(found[others[0]])} under {others[0][:60]!r}, not a table of tensors alone: save the state_dict of '
      'the model alone'
    )
  return found


def _kind(value: Any) -> str:
  return {'dict': 'a table', 'NoneType': 'nothing', '_Maker': 'a class'}.get(type(value).__name__, type(value).__name__)


# --- what the pickle may call ---


@dataclasses.dataclass(frozen=True)
class _Maker:
  """What a global name stands for: a function of ours, or the class of a storage."""

  make: Callable | None
  storage: str = ''  # a key of STORAGES


def _table(*pairs) -> dict:
  if pairs:
    raise ValueError('its pickle makes a table in a way that torch does not')
  return {}


def _tensor(storage, offset, shape, strides, requires_grad=False, hooks=None, metadata=None) -> TensorView:
  """torch._utils._rebuild_tensor_v2, with its arguments. metadata: a view that changes signs, for example."""
  del requires_grad, hooks  # for training
  if metadata:
    raise ValueError('its pickle has a tensor with metadata, which says that its values are others')
  numbers = (offset, *shape, *strides)
  if not isinstance(storage, Storage) or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
    raise ValueError('its pickle has a tensor that is damaged')
  shape, strides = tuple(shape), tuple(strides)
  if len(shape) != len(strides) or len(shape) > 8:
    raise ValueError('its pickle has a tensor that is damaged')
  end = offset + 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
  if 0 not in shape and end > storage.elements:
    raise ValueError(f'a tensor of shape {shape} needs {end:,} elements and its storage has {storage.elements:,}')
  return TensorView(storage, offset, shape, strides)


def _parameter(tensor, *_) -> TensorView:
  """torch._utils._rebuild_parameter(data, requires_grad, backward_hooks)."""
  if not isinstance(tensor, TensorView):
    raise ValueError('its pickle has a parameter that is no tensor')
  return tensor


_MAKERS = {
  'collections OrderedDict': _Maker(_table),
  'torch._utils _rebuild_tensor': _Maker(_tensor),
  'torch._utils _rebuild_tensor_v2': _Maker(_tensor),
  'torch._utils _rebuild_parameter': _Maker(_parameter),
  'torch Size': _Maker(lambda numbers: tuple(numbers)),
  **{f'torch {name}': _Maker(None, name) for name in STORAGES},
  **{f'torch.storage {name}': _Maker(None, name) for name in STORAGES},
}


# --- the machine ---


class _Machine:
  """A stack, marks in it, and a memo."""

  def __init__(self):
    self.stack: list = []
    self.marks: list[int] = []
    self.memo: dict[int, Any] = {}

  def run(self, stream: BinaryIO) -> Any:
    """The value that the pickle leaves."""
    for count, (instruction, argument, _) in enumerate(pickletools.genops(stream)):
      name = instruction.name
      if count > _MOST_INSTRUCTIONS:
        raise ValueError('its pickle has too many instructions for a table of tensors')
      if name == 'STOP':
        return self.stack.pop()
      if name in _VALUES:
        self.stack.append(argument)
      elif name in _CONSTANTS:
        self.stack.append(_CONSTANTS[name]())
      elif name in _ACTIONS:
        _ACTIONS[name](self, argument)
      elif name not in _NOTHING:
        raise Unsafe(f'its pickle has the instruction {name}, which no table of tensors needs')
    raise ValueError('its pickle has no end')

  def mark(self, _):
    self.marks.append(len(self.stack))

  def since_mark(self) -> list:
    start = self.marks.pop()
    values = self.stack[start:]
    del self.stack[start:]
    return values

  def look_up(self, name: str):
    """GLOBAL: `name` is 'module function'."""
    if name not in _MAKERS:
      raise Unsafe(f'its pickle asks for {name.replace(" ", ".")[:80]}, and nothing but plain tensors is made')
    self.stack.append(_MAKERS[name])

  def look_up_on_stack(self, _):
    function, module = self.stack.pop(), self.stack.pop()
    self.look_up(f'{module} {function}')

  def call(self, _):
    """REDUCE."""
    arguments, maker = self.stack.pop(), self.stack.pop()
    if not isinstance(maker, _Maker) or maker.make is None or not isinstance(arguments, tuple):
      raise ValueError('its pickle calls what is no function')
    self.stack.append(maker.make(*arguments))

  def find_storage(self, _):
    """BINPERSID: ('storage', class, key, device, elements), and in files from before 2020 a sixth, None."""
    kind, maker, key, _, elements, *view = self.stack.pop()
    if view not in ([], [None]):
      raise ValueError('its pickle has a storage that is a part of another')
    if kind != 'storage' or not maker.storage or not isinstance(key, str) or type(elements) is not int or elements < 0:
      raise ValueError('its pickle has a storage that is damaged')
    self.stack.append(Storage(STORAGES[maker.storage][0], key, elements))

  def set_items(self, pairs: list):
    table = self.stack[-1]
    if not isinstance(table, dict) or len(pairs) % 2 or not all(isinstance(key, str) for key in pairs[::2]):
      raise ValueError('its pickle has a table whose keys are no names')
    table.update(zip(pairs[::2], pairs[1::2], strict=True))

  def ignore_state(self, _):
    """BUILD: the attributes of a table; `state_dict` gives it the versions of its modules."""
    del self.stack[-1]
    if not isinstance(self.stack[-1], dict):
      raise ValueError('its pickle gives attributes to what has none')

  def extend(self, values: list):
    self.stack[-1].extend(values)

  def tuple_of(self, count: int):
    values = tuple(self.stack[len(self.stack) - count :]) if count else ()
    if len(values) < count:
      raise ValueError('its pickle is damaged')
    del self.stack[len(self.stack) - count :]
    self.stack.append(values)

  def keep(self, index: int | None):
    self.memo[len(self.memo) if index is None else index] = self.stack[-1]

  def recall(self, index: int):
    self.stack.append(self.memo[index])


# Instructions by what they do: push their argument, push a constant, nothing, or a method.
_VALUES = {'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8', 'BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT'}
_CONSTANTS: dict[str, Callable] = {
  'NONE': lambda: None,
  'NEWTRUE': lambda: True,
  'NEWFALSE': lambda: False,
  'EMPTY_DICT': dict,
  'EMPTY_LIST': list,
  'EMPTY_TUPLE': tuple,
}
_NOTHING = {'PROTO', 'FRAME'}
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
  'MARK': _Machine.mark,
  'GLOBAL': _Machine.look_up,
  'STACK_GLOBAL': _Machine.look_up_on_stack,
  'REDUCE': _Machine.call,
  'BINPERSID': _Machine.find_storage,
  'BUILD': _Machine.ignore_state,
  'SETITEM': lambda machine, _: machine.set_items([machine.stack.pop(), machine.stack.pop()][::-1]),
  'SETITEMS': lambda machine, _: machine.set_items(machine.since_mark()),
  'APPEND': lambda machine, _: machine.extend([machine.stack.pop()]),
  'APPENDS': lambda machine, _: machine.extend(machine.since_mark()),
  'TUPLE': lambda machine, _: machine.stack.append(tuple(machine.since_mark())),
  'TUPLE1': lambda machine, _: machine.tuple_of(1),
  'TUPLE2': lambda machine, _: machine.tuple_of(2),
  'TUPLE3': lambda machine, _: machine.tuple_of(3),
  'MEMOIZE': _Machine.keep,
  'BINPUT': _Machine.keep,
  'LONG_BINPUT': _Machine.keep,
  'BINGET': _Machine.recall,
  'LONG_BINGET': _Machine.recall,
}
