"""Data sets that tensorflow-datasets prepared: tfds:NAME[/CONFIG][:VERSION], or the files of one. Without TensorFlow.

TFDS_DATA_DIR/NAME/CONFIG/VERSION/NAME-train.array_record-00000-of-00001     also .tfrecord-...
TFDS_DATA_DIR/NAME/CONFIG/VERSION/features.json                              how its records are decoded

TFDS_DATA_DIR is ~/tensorflow_datasets where the variable is not set, as for the library.
"""

import difflib
import os
import re
import struct
from collections.abc import Iterator

from mathqwen import files
from mathqwen.data.json_rows import shortest
from mathqwen.errors import UserError, report

PREFIX = 'tfds:'
FILE = re.compile(r'\.(array_record|tfrecord)-\d+-of-\d+$')
_NAME = re.compile(rf'{PREFIX}(?P<name>\w+)(/(?P<config>[\w.+-]+))?(:(?P<version>[\d.]+))?')


def data_files(source: str, split: str) -> list[files.AnyPath]:
  """The files of a split. Reports the licence.

  UserError: when the name has another form, TFDS has not prepared it, or it has no such split.
  """
  match = _NAME.fullmatch(source)
  if match is None:
    raise UserError(f'{source}: write {PREFIX}NAME, which /CONFIG and :VERSION may follow')
  from tensorflow_datasets.core import read_only_builder, registered

  root = os.path.expanduser(os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets')
  asked = {name: value for name, value in match.groupdict().items() if name != 'name' and value}
  try:
    builder = read_only_builder.builder_from_files(match['name'], data_dir=root, **asked)
  except registered.DatasetNotFoundError:
    raise UserError(_missing(source, match['name'], root)) from None
  info = builder.info
  if split not in info.splits:
    raise UserError(f'{source} has the splits {", ".join(info.splits)} and none called {split}')
  licence = (info.redistribution_info and info.redistribution_info.license) or 'not stated'
  report(f'{source}: {info.full_name}, licence {licence}, {info.splits[split].num_examples:,} rows')
  return [files.path(os.fspath(path)) for path in info.splits[split].filepaths]


def origin(path: files.AnyPath) -> dict[str, str]:
  """`origins.of` of one of the files; nothing where the description of the data set was not copied with it."""
  if not (path.parent / 'dataset_info.json').is_file():
    return {}
  about = files.read_json_object(path.parent / 'dataset_info.json')
  found = {'name': str(about.get('name')), 'revision': str(about.get('version'))}
  return found | {'licence': (about.get('redistributionInfo') or {}).get('license') or 'not stated'}


def _missing(source: str, name: str, root: str) -> str:
  """The line for a data set that is not there."""
  import tensorflow_datasets as tfds

  known = tfds.list_builders(with_community_datasets=False)
  there = [name for name in os.listdir(root) if not name.startswith('.')] if os.path.isdir(root) else []
  words = source.removeprefix(PREFIX)
  if name in known or name in there:
    return (
      f'{source} is not prepared in {root}: run `tfds build {words.partition(":")[0]} --file_format=array_record '
      f'--data_dir={root}` once (it needs TensorFlow), or set TFDS_DATA_DIR to the folder that has it'
    )
  near = difflib.get_close_matches(name, [*known, *there], n=1)
  hint = f'did you mean {PREFIX}{near[0]}?' if near else 'set TFDS_DATA_DIR to the folder that has it'
  return f'{source}: neither tensorflow-datasets nor {root} has a data set {name!r}; {hint}'


def records(path: files.AnyPath) -> Iterator[tuple[int, object]]:
  """(row, value) of each record of a file, as `formats.records` has them. UserError: when it cannot be decoded."""
  import tensorflow_datasets as tfds

  from mathqwen.data.malformed import Malformed

  folder = path.parent
  if not (folder / 'features.json').is_file():
    raise UserError(f'{folder} has no features.json, which says what the records of {path.name} are: copy it too')
  features = tfds.features.FeatureConnector.from_config(os.fspath(folder))
  read = _array_record if FILE.search(path.name)[1] == 'array_record' else _tfrecord
  row = 0
  try:
    for row, record in enumerate(read(path), start=1):
      decoded = features.decode_example_np(features.deserialize_example_np(record))
      try:
        value = _plain(decoded, features)
      except UnicodeDecodeError:
        value = Malformed('holds text that is not UTF-8')
      yield row, value
  except ImportError as error:
    raise UserError(f'{path}: its records need the package {error.name}: pip install {error.name}') from None
  except (ValueError, RuntimeError, KeyError, IndexError, struct.error) as error:
    reason = (str(error).splitlines() or [''])[0]
    raise UserError(f'{path}: damaged after row {row} ({type(error).__name__}: {reason}); copy it again') from error


def _array_record(path: files.AnyPath) -> Iterator[bytes]:
  from array_record.python.array_record_module import ArrayRecordReader

  if files.is_remote(path):
    raise UserError(f'{path}: array_record files are read from local disks alone: copy the folder, or mount the bucket')
  reader = ArrayRecordReader(os.fspath(path))
  try:
    for number in range(reader.num_records()):
      yield reader.read([number])[0]
  finally:
    reader.close()


def _tfrecord(path: files.AnyPath) -> Iterator[bytes]:
  """Records stand between length (checked) and checksum: tensorflow.org/tutorials/load_data/tfrecord."""
  from mathqwen.data.formats import opened

  with opened(path) as file:
    while head := file.read(12):
      size = struct.unpack('<QI', head)[0]
      record, end = file.read(size), file.read(4)
      if len(record) < size or len(end) < 4:
        raise ValueError('it ends in the middle of a record')
      yield record


def _plain(value: object, feature: object) -> object:
  """A decoded value as JSON has it. A list of objects, which TFDS gives as an object of lists, is one again."""
  import numpy as np
  import tensorflow_datasets as tfds

  if isinstance(feature, tfds.features.FeaturesDict):
    return {name: _plain(value[name], inner) for name, inner in feature.items()}
  if isinstance(feature, tfds.features.Sequence):
    inner = feature.feature
    if isinstance(inner, tfds.features.FeaturesDict):
      columns = {name: _plain(value[name], tfds.features.Sequence(part)) for name, part in inner.items()}
      return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return [_plain(one, inner) for one in value]
  if isinstance(value, bytes):
    return value.decode()
  if getattr(feature, 'np_dtype', None) in (np.float16, np.float32):
    return _decimals(np.asarray(value, feature.np_dtype))
  if hasattr(value, 'tolist'):
    return _texts(value.tolist())
  return value


def _texts(value: object) -> object:
  if isinstance(value, list):
    return [_texts(one) for one in value]
  return value.decode() if isinstance(value, bytes) else value


def _decimals(values) -> object:
  """`shortest` of a number, or of each one of an array."""
  return [_decimals(part) for part in values] if values.ndim else shortest(values[()])
