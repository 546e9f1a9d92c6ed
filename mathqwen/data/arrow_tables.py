"""The rows of Parquet and Arrow files as JSON has them.

column                          value
date32, timestamp, time64       '2024-05-06', '2024-05-06 07:08:09.000000001': text, as Python cannot hold all of them
duration                        '1.5 s'
float32, float16                0.1, the shortest decimal of that type, not 0.10000000149011612
binary                          text, where the bytes are UTF-8: some writers store texts as bytes
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from mathqwen import files
from mathqwen.data.json_rows import DECODER, check_names, shortest
from mathqwen.errors import UserError

_BATCH = 1024  # rows that are made objects at once
_UNITS = {'s': 1, 'ms': 10**3, 'us': 10**6, 'ns': 10**9}  # of a duration, in a second

Row = tuple[int, object]  # (its number, counted from 1; the object)


def parquet_rows(path: files.AnyPath, file: BinaryIO) -> Iterator[Row]:
  """The rows of a Parquet file that can be sought in.

  UserError: when it is damaged, has two columns of one name, or a value that is no text or number.
  """
  from pyarrow import parquet

  yield from _rows(path, lambda: parquet.ParquetFile(file).iter_batches(_BATCH))


def arrow_file_rows(path: files.AnyPath, file: BinaryIO) -> Iterator[Row]:
  """As `parquet_rows`, of an Arrow file."""
  from pyarrow import ipc

  def batches() -> Iterator:
    reader = ipc.open_file(file)
    return (reader.get_batch(i) for i in range(reader.num_record_batches))

  yield from _rows(path, batches)


def arrow_stream_rows(path: files.AnyPath, file: BinaryIO) -> Iterator[Row]:
  """As `parquet_rows`, of the stream that `datasets.save_to_disk` writes; nothing is sought in it."""
  from pyarrow import ipc

  yield from _rows(path, lambda: ipc.open_stream(file))


def _rows(path: files.AnyPath, open_batches: Callable[[], Iterable]) -> Iterator[Row]:
  import pyarrow

  row = 0
  try:
    for batch in open_batches():
      _check_fields(path, batch.schema)
      columns = [_values(path, batch, name, row) for name in batch.schema.names]
      for number in range(batch.num_rows):
        row += 1
        value = {name: column[number] for name, column in zip(batch.schema.names, columns, strict=True)}
        yield row, DECODER.decode(json.dumps(value, default=_as_text))
  except (pyarrow.ArrowException, OSError) as error:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise UserError(f'{path}: half-written or damaged after row {row} ({reason}); fetch it again') from error


def _check_fields(path: files.AnyPath, fields: Iterable) -> None:
  """`check_names` of pyarrow's fields, and of those inside them."""
  fields = list(fields)
  check_names(path, (field.name for field in fields))
  for field in fields:
    _check_fields(path, (field.type.field(i) for i in range(field.type.num_fields)))


def _values(path: files.AnyPath, batch, name: str, rows_before: int) -> list:
  """The values of a column. UserError: names the first row with one that cannot be read, as text that is not UTF-8."""
  import pyarrow

  column = batch.column(name)
  target, change = _plain(column.type)
  if change is not None:
    column = column.cast(target)
  try:
    values = column.to_pylist()
  except pyarrow.ArrowException:
    raise
  except (ValueError, OverflowError) as error:
    row = rows_before + 1 + _first_unreadable(column)
    if isinstance(error, UnicodeDecodeError):
      raise UserError(f'{path}: row {row}: column {name!r} is not UTF-8; write it again from text in UTF-8') from error
    raise UserError(
      f'{path}: row {row}: column {name!r} holds a value that cannot be read ({error}); write it as text'
    ) from error
  return values if change is None else list(map(change, values))


def _first_unreadable(column) -> int:
  """The index of the first value that Python cannot hold."""
  for number, value in enumerate(column):
    try:
      value.as_py()
    except (ValueError, OverflowError):
      return number
  return 0


def _plain(kind) -> tuple[object, Callable | None]:
  """(the type that a column of this one is cast to, what then changes a Python value of it; None for nothing)."""
  import pyarrow
  from pyarrow import types

  if types.is_dictionary(kind):
    target, change = _plain(kind.value_type)
    return (target, change) if change else (kind, None)
  if types.is_date(kind) or types.is_time(kind) or types.is_timestamp(kind):
    return pyarrow.string(), _unless_none(_without_zeros)
  if types.is_duration(kind):
    return pyarrow.int64(), _unless_none(lambda count: f'{count / _UNITS[kind.unit]} s')
  if types.is_float32(kind):
    return pyarrow.string(), _unless_none(_from_shortest)
  if types.is_float16(kind):
    return pyarrow.float32(), _unless_none(_shortest_half)
  if types.is_struct(kind):
    return _plain_struct(kind)
  if types.is_map(kind):
    key, change_key = _plain(kind.key_type)
    item, change_item = _plain(kind.item_type)
    same = lambda value: value
    of_pair = lambda pair: ((change_key or same)(pair[0]), (change_item or same)(pair[1]))
    changes = change_key or change_item
    return pyarrow.map_(key, item), _of_all(of_pair) if changes else None
  make_list = next((make for is_one, make in _lists().items() if is_one(kind)), None)
  if make_list is None:
    return kind, None
  inner, change = _plain(kind.value_type)
  return make_list(kind, kind.value_field.with_type(inner)), _of_all(change) if change else None


def _plain_struct(kind) -> tuple[object, Callable | None]:
  """`_plain` of a struct."""
  import pyarrow

  fields = [kind.field(i) for i in range(kind.num_fields)]
  plain = {field.name: _plain(field.type) for field in fields}
  changes = {name: change for name, (_, change) in plain.items() if change}
  target = pyarrow.struct([field.with_type(plain[field.name][0]) for field in fields])
  change_all = lambda value: value | {name: change(value[name]) for name, change in changes.items()}
  return target, _unless_none(change_all) if changes else None


def _lists() -> dict[Callable, Callable]:
  """Whether a type is one of lists -> (that type, the field of its values) -> the same of other values."""
  import pyarrow
  from pyarrow import types

  return {
    types.is_list: lambda kind, field: pyarrow.list_(field),
    types.is_large_list: lambda kind, field: pyarrow.large_list(field),
    types.is_fixed_size_list: lambda kind, field: pyarrow.list_(field, kind.list_size),
  }


def _unless_none(change: Callable) -> Callable:
  return lambda value: None if value is None else change(value)


def _of_all(change: Callable) -> Callable:
  """Changes each value of a list."""
  return _unless_none(lambda values: list(map(change, values)))


def _without_zeros(text: str) -> str:
  """'2024-01-02 00:00:00.000000Z' as '2024-01-02 00:00:00Z'."""
  return re.sub(r'\.0+(?!\d)', '', text)


def _from_shortest(text: str) -> float:
  """The number that Arrow writes for a float32. A whole number is the exact one, 2**30 and not 1073741800."""
  import numpy

  value = float(text)
  return float(numpy.float32(value)) if value.is_integer() else value


def _shortest_half(value: float) -> float:
  """`shortest` of the value of a float16."""
  import numpy

  return shortest(numpy.float16(value))


def _as_text(value: object) -> str:
  """A value that JSON does not have."""
  try:
    return value.decode() if isinstance(value, bytes) else str(value)
  except UnicodeDecodeError:  # no text: an image, for example
    return str(value)
