r"""The downloadable data sets, prepared once with tensorflow-datasets for random access, without TensorFlow.

  gsm8k/train.jsonl.gz --parse--> rows   --TFDS--> CACHE/prepared/gsm8k-train-DIGEST/gsm8k/1.0.0/*.array_record
                             \--> report --TFDS--> metadata.json in the same place: malformed rows, by line

CACHE is $MATHQWEN_CACHE, by default ~/.cache/mathqwen. DIGEST covers the source files and the code that parses them, so
a change of either gives a new directory. TFDS writes to incomplete.* and renames at the end, so whatever has the final
name is complete. The folder that is read (data_dir) is never written to.
"""

import contextlib
import functools
import hashlib
import http.client
import inspect
import io
import json
import tarfile
import urllib.request
import zlib
from pathlib import Path

import tensorflow_datasets as tfds

from mathqwen import files
from mathqwen.data import arithmetic, arrow_tables, catalog, examples, expressions, field_texts, formats, json_rows
from mathqwen.data.cache import cache_dir
from mathqwen.data.examples import Example
from mathqwen.data.left_out import Report
from mathqwen.errors import Unreachable, UserError, report

_FIELDS = ('id', 'question', 'solution', 'answer', 'extra', 'where')


class _Info(tfds.core.DatasetInfo):
  """The description of a prepared data set, without looking on the network."""

  def initialize_from_bucket(self) -> None:
    """Does nothing. TFDS would look for published statistics and leave an empty folder in /tmp for each builder."""


class _Problems(tfds.core.GeneratorBasedBuilder):
  """The builder of one data set. Reads `file` for each split, or `source`, a folder in the layout of its `Split.files`.

  Without either, it downloads.
  """

  VERSION = tfds.core.Version('1.0.0')

  def __init__(
    self,
    *,
    source: str | None = None,
    file: files.AnyPath | None = None,
    splits: tuple[str, ...] | None = None,
    options: str = '',
    **kwargs,
  ):
    self.source = source
    self.file = file
    self.wanted = splits  # None: all splits whose files are there
    self.options = options  # as `catalog.options_of` spells them
    super().__init__(file_format='array_record', **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return _Info(
      builder=self,
      description=catalog.get(self.name).about,
      homepage=catalog.get(self.name).homepage,
      disable_shuffling=True,
      features=tfds.features.FeaturesDict({field: tfds.features.Text() for field in _FIELDS}),
      metadata=tfds.core.MetadataDict(report={}),
    )

  def _split_generators(self, dl_manager):
    source = None if self.file else self.source or fetch(self.name)
    result = {}
    for split in self.wanted or _present(self.name, source):
      name, public_split = catalog.known_name(catalog.get(self.name), split)
      parsed, left_out = examples.parse_file(
        self.file or _split_file(self.name, split, source),
        f'{name}?{self.options}' if self.options else name,
        public_split,
      )
      self.info.metadata['report'][split] = left_out.to_dict()
      result[split] = self._generate_examples(parsed)
    return result

  def _generate_examples(self, parsed: list[Example]):
    for index, example in enumerate(parsed):
      row = {field: getattr(example, field) for field in _FIELDS}
      yield index, row | {'extra': json.dumps(example.extra, ensure_ascii=False)}


@functools.cache
def builder_class(name: str) -> type[_Problems]:
  """The builder of a data set of the catalog. Cached, because TFDS refuses two classes of one name."""
  return type(f'{name.capitalize()}Problems', (_Problems,), {'name': catalog.get(name).name})


def read(source: str, split: str, data_dir: str | None = None) -> tuple[list[Example], Report, files.AnyPath]:
  """(examples, report of malformed rows, the source file) of a split, prepared first if necessary.

  Without data_dir: from the files that `prepare` last saw, or from its copy when they are gone.
  UserError: when there is no such data, or a file is damaged.
  """
  data, own_split = catalog.find_split(source, split)
  root, path = _locate(data.name, own_split, data_dir, catalog.options_of(data, source))
  found, left_out = _rows(data.name, own_split, root)
  return found, left_out, path


def _locate(name: str, split: str, data_dir: str | None, options: str = '') -> tuple[Path, files.AnyPath]:
  """(prepared directory, source file)."""
  if data_dir is not None:
    path = _split_file(name, split, data_dir)
    return _build(name, split, path, options), path
  if chosen := _chosen(name).get(split):
    root = chosen['root']
    path = chosen['file']
    if path.is_file():
      return _build(name, split, path, options), path
    if options:
      raise UserError(
        f'{name}?{options}: {path} is gone, and its copy has other options: run `mathqwen data prepare {name}` again'
      )
    if _is_complete(name, root):
      return root, path
  raise UserError(_how_to_get(name, split))


def _how_to_get(name: str, split: str) -> str:
  """The line for a split that is not there: how the user gets it."""
  data = catalog.get(name)
  if data.withdrawn:
    packed = f' (or {", ".join(data.packed)})' if data.packed else ''
    return (
      f'no {name} {split} data here, and it cannot be downloaded: {data.withdrawn}; put a copy of yours into '
      f'DIR/{_file(name, split)}, gzip or not{packed}, and run `mathqwen data prepare {name} --data-dir DIR` once, or '
      'pass --data-dir DIR'
    )
  return (
    f'no {name} {split} data here: run `mathqwen data prepare {name}` (it downloads from '
    f'{_address(name)}) or pass --data-dir DIR with {_file(name, split)}'
  )


def prepare(name: str, data_dir: str | None = None, download: bool = False) -> dict:
  """Prepares all splits of a data set. From then on they are the ones that are read without a data_dir.

  They come from data_dir; or, with `download`, from the public addresses, if there are some; or else from where they
  came last time.
  Returns {'name', 'source', 'path', 'splits': {split: rows}, 'report': {split: Report.to_dict()}}.
  UserError: when the data cannot be read, downloaded or written.
  """
  data = catalog.get(name)
  if data_dir is None and download and data.downloads:
    data_dir = str(fetch(name))
  if data_dir is not None:
    _choose(name, data_dir)

  splits = {}
  reports = {}
  source = None
  # Without any choice `_locate` raises for the first split, with the remedy.
  for split in _chosen(name) or list(data.splits)[:1]:
    root, path = _locate(name, split, None)
    with _undamaged(root):
      info = builder_class(name)(data_dir=str(root)).info
      splits[split] = info.splits[split].num_examples
      reports[split] = dict(info.metadata['report'][split])
    source = str(path.parent.parent)
  return {'name': name, 'source': source, 'path': str(cache_dir() / 'prepared'), 'splits': splits, 'report': reports}


def _choose(name: str, data_dir: str) -> None:
  """Prepares the splits that are in data_dir and writes down which files they came from."""
  found = {split: data_dir for split in _present(name, data_dir)}
  packed = catalog.get(name).packed
  if packed and all((files.path(data_dir) / file).is_file() for file in packed):
    unpacked = cache_dir() / 'unpacked'
    _unpack(name, files.path(data_dir), unpacked)
    found = {split: str(unpacked) for split in _present(name, unpacked)} | found
  if not found:
    _split_file(name, next(iter(catalog.get(name).splits)), data_dir)  # raises, with the paths tried
  chosen = {}
  for split, folder in found.items():
    path = _split_file(name, split, folder).absolute()
    chosen[split] = {'root': str(_build(name, split, path)), 'file': str(path)}
  _write(_pointer(name), json.dumps(chosen, indent=1).encode())


def _split_file(name: str, split: str, data_dir: str | files.AnyPath) -> files.AnyPath:
  """The file of a split by its own name; `examples.find` takes the name that users know it by."""
  return examples.find(*catalog.known_name(catalog.get(name), split), data_dir)


def _file(name: str, split: str) -> str:
  """The first path that is tried, for messages."""
  return catalog.get(name).splits[split].files[0]


def _present(name: str, data_dir: str | files.AnyPath) -> list[str]:
  """The splits whose file is in data_dir."""
  present = []
  for split in catalog.get(name).splits:
    try:
      _split_file(name, split, data_dir)
    except Unreachable:
      raise
    except UserError:
      continue
    present.append(split)
  return present


def _address(name: str) -> str:
  return next(iter(catalog.get(name).downloads.values())).address


def _pointer(name: str) -> Path:
  return cache_dir() / 'prepared' / f'{name}.json'


def _chosen(name: str) -> dict[str, dict[str, files.AnyPath]]:
  """Split -> {'root': prepared directory, 'file': source file}, as `_choose` wrote them down."""
  pointer = _pointer(name)
  try:
    chosen = json.loads(pointer.read_text()) if pointer.is_file() else {}
    paths = {}
    for split, found in chosen.items():
      if split in catalog.get(name).splits:
        paths[split] = {'root': Path(found['root']), 'file': files.path(found['file'])}
    return paths
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(
      f'{pointer} is damaged ({type(error).__name__}: {error}): run `mathqwen data prepare {name}` again'
    ) from None


def _write(path: Path, data: bytes) -> None:
  try:
    files.write_atomically(path, data)
  except OSError as error:
    raise _cannot_write(path, error) from error


def _cannot_write(path, error: OSError) -> UserError:
  return UserError(f'cannot write {path}: {error.strerror}; set MATHQWEN_CACHE to a directory that can be written')


def _is_complete(name: str, root: Path) -> bool:
  return (root / name / str(_Problems.VERSION) / 'dataset_info.json').is_file()


def _build(name: str, split: str, path: files.AnyPath, options: str = '') -> Path:
  """The prepared directory of a split, CACHE/prepared/gsm8k-train-DIGEST; prepares it if it is not there yet."""
  root = cache_dir() / 'prepared' / f'{name}-{split}-{_digest(name, split, path, options)}'
  if _is_complete(name, root):
    return root
  _write(root / 'source.json', json.dumps({'file': str(path)}).encode())
  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints that it downloads a data set of unknown size
    builder = builder_class(name)(file=path, splits=(split,), options=options, data_dir=str(root))
    try:
      builder.download_and_prepare()
    except (OSError, RuntimeError) as error:  # RuntimeError: from Riegeli, which writes the records
      # When it is complete, another process finished first, and TFDS could not rename over its directory.
      if not _is_complete(name, root):
        raise UserError(
          f'cannot write the prepared {name} under {root}: {getattr(error, "strerror", None) or error}; set '
          f'MATHQWEN_CACHE to a directory that can be written'
        ) from error
  return root


def _digest(name: str, split: str, path: files.AnyPath, options: str) -> str:
  """Changes with the content of everything the prepared rows depend on. Modification times are not enough for that."""
  digest = hashlib.sha256(repr((name, split, path.name, options, tfds.__version__)).encode())
  data = catalog.get(name)
  task_file = inspect.getsourcefile(data.parse)
  shared = sorted(catalog.TASKS.glob('_*.py'))  # what several task files import
  modules = (arithmetic, arrow_tables, examples, expressions, field_texts, formats, json_rows)
  code = (task_file, *shared, *(module.__file__ for module in modules), __file__)
  for file in (path, examples.companion(path, data), *map(Path, code)):
    try:
      digest.update(hashlib.sha256(file.read_bytes()).digest() if file else b'-')
    except OSError as error:
      raise UserError(f'cannot read {file}: {error.strerror}; check the path') from error
  return digest.hexdigest()[:20]


def _rows(name: str, split: str, root: Path) -> tuple[list[Example], Report]:
  """What was prepared in `root`."""
  with _undamaged(root):
    builder = builder_class(name)(data_dir=str(root))
    source = builder.as_data_source(split=split)
    rows = source.__getitems__(range(len(source)))
    result = []
    for row in rows:
      fields = {field: row[field].decode('utf-8') for field in _FIELDS}
      result.append(Example(**fields | {'extra': json.loads(fields['extra'])}))
    return result, Report.from_dict(builder.info.metadata['report'][split])


@contextlib.contextmanager
def _undamaged(root: Path):
  """Turns any error while reading what was prepared in `root` into a UserError."""
  try:
    yield
  except Exception as error:  # TFDS, protobuf, Riegeli and JSON each raise their own kind for an incomplete file
    reason = (str(error).splitlines() or [''])[0]
    raise UserError(
      f'the prepared copy in {root} is damaged ({type(error).__name__}: {reason}); delete that directory'
    ) from error


# --- downloads: into CACHE/downloads, in the layout of `Split.files` ---


def fetch(name: str) -> Path:
  """Downloads the files of a data set that are not there yet, and unpacks them. Returns the folder that they are below.

  UserError: when a file cannot be downloaded, or is not what is published.
  """
  folder = cache_dir() / 'downloads'
  data = catalog.get(name)
  for target, source in data.downloads.items():
    if not (folder / target).is_file():
      _download(source.address, folder / target, source.sha256)
  _unpack(name, folder, folder)
  return folder


def _unpack(name: str, source: files.AnyPath, target: Path) -> None:
  """Makes the files of the splits in `target`. UserError: when those in `source` are not what is published."""
  unpack = catalog.get(name).unpack
  if unpack is None:
    return
  try:
    unpack(source, target)
  except OSError as error:
    raise _cannot_write(error.filename, error) from error
  except (tarfile.TarError, EOFError, zlib.error, ValueError, LookupError, TypeError, AttributeError) as error:
    raise UserError(
      f'the files in {source / name} are not what is published ({type(error).__name__}: {error}); '
      'delete or replace them, and prepare again'
    ) from error


def _download(address: str, target: Path, sha256: str | None) -> None:
  """Writes the file at `address` to `target`. UserError: when there is none, or its SHA-256 is another."""
  report(f'downloading {address}')
  remedy = f'try again, or download it in another way and pass --data-dir DIR with {target.parent.name}/{target.name}'
  try:
    with urllib.request.urlopen(address, timeout=60) as response:
      data = response.read()
  except (OSError, http.client.HTTPException) as error:
    raise UserError(f'cannot download {address}: {error}; {remedy}') from error
  found = hashlib.sha256(data).hexdigest()
  if sha256 is not None and found != sha256:
    raise UserError(f'{address} sent {len(data)} bytes with SHA-256 {found}, not {sha256}; {remedy}')
  _write(target, data)
