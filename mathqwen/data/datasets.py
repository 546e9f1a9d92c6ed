r"""The data sets that can be downloaded as tensorflow-datasets builders, without TensorFlow.

  gsm8k/train.jsonl.gz --parse--> rows   --TFDS--> CACHE/prepared/gsm8k-train-DIGEST/gsm8k/1.0.0/*.array_record
                             \--> report --TFDS--> metadata.json beside: malformed rows, by line

CACHE is $MATHQWEN_CACHE, by default ~/.cache/mathqwen. DIGEST covers the source files and the parsers, so another file
or another parser is another directory. TFDS writes to incomplete.* and renames at the end: what has the final name is
whole. The folder that is read (data_dir) is never written to.
"""

import contextlib
import functools
import hashlib
import http.client
import inspect
import io
import json
import os
import sys
import tarfile
import urllib.request
import zlib
from pathlib import Path

import tensorflow_datasets as tfds

from mathqwen.data import arithmetic, catalog, examples
from mathqwen.data.examples import Example, Report
from mathqwen.errors import UserError
from mathqwen.files import write_atomically

_FIELDS = ('id', 'question', 'solution', 'answer', 'extra', 'where')


class _Info(tfds.core.DatasetInfo):
  def initialize_from_bucket(self) -> None:
    """Nothing: TFDS would look for published statistics and leave an empty folder in /tmp for each builder."""


class _Problems(tfds.core.GeneratorBasedBuilder):
  """Splits of one data set read from `source`, a folder in the layout of its `Split.files`, or else downloaded."""

  VERSION = tfds.core.Version('1.0.0')

  def __init__(self, *, source: str | None = None, splits: tuple[str, ...] | None = None, **kwargs):
    self.source, self.wanted = source, splits
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
    source = self.source or fetch(self.name)
    result = {}
    for split in self.wanted or _present(self.name, source):
      public = catalog.known_name(catalog.get(self.name), split)
      parsed, report = examples.parse_file(_find(self.name, split, source), *public)
      self.info.metadata['report'][split] = report.to_dict()
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


def cache_dir() -> Path:
  return Path(os.environ.get('MATHQWEN_CACHE') or Path.home() / '.cache' / 'mathqwen')


def read(source: str, split: str, data_dir: str | None = None) -> tuple[list[Example], Report, Path]:
  """(examples, report of malformed rows, folder of the source file) of a split, prepared first where need be.

  Without data_dir: from the files that `prepare` was last given, or from its copy when they are gone.
  """
  data, own = catalog.find_split(source, split)
  root, path = _locate(data.name, own, data_dir)
  return *_rows(data.name, own, root), path.parent


def _locate(name: str, split: str, data_dir: str | None) -> tuple[Path, Path]:
  """(prepared directory, source file)."""
  if data_dir is not None:
    path = _find(name, split, data_dir)
    return _build(name, split, path), path
  chosen = _chosen(name).get(split)
  if chosen:
    root, path = chosen['root'], chosen['file']
    if path.is_file():
      return _build(name, split, path), path
    if _is_whole(name, root):
      return root, path
  raise UserError(
    f'no {name} {split} data here: run `mathqwen data prepare {name}` (it downloads from '
    f'{_address(name)}) or pass --data-dir DIR with {_file(name, split)}'
  )


def prepare(name: str, data_dir: str | None = None, download: bool = False) -> dict:
  """Prepares all splits of a data set and makes them the ones that are read without a data_dir.

  From data_dir, or from the public addresses when `download` is set, or again from where they came last.
  Returns {'name', 'source', 'path', 'splits': {split: rows}, 'report': {split: Report.to_dict()}}.
  """
  data = catalog.get(name)
  if data_dir is None and download:
    data_dir = str(fetch(name))
  if data_dir is not None:
    files = {split: _find(name, split, data_dir).absolute() for split in _present(name, data_dir)}
    if not files:
      _find(name, next(iter(data.splits)), data_dir)
    chosen = {split: {'root': str(_build(name, split, path)), 'file': str(path)} for split, path in files.items()}
    _write(_pointer(name), json.dumps(chosen, indent=1).encode())
  splits, report, source = {}, {}, None
  for split in _chosen(name) or list(data.splits)[:1]:
    root, path = _locate(name, split, None)
    with _undamaged(root):
      info = builder_class(name)(data_dir=str(root)).info
      splits[split], report[split] = info.splits[split].num_examples, dict(info.metadata['report'][split])
    source = str(path.parent.parent)
  return {'name': name, 'source': source, 'path': str(cache_dir() / 'prepared'), 'splits': splits, 'report': report}


def _find(name: str, split: str, data_dir: str | Path) -> Path:
  return examples.find(*catalog.known_name(catalog.get(name), split), data_dir)


def _file(name: str, split: str) -> str:
  return catalog.get(name).splits[split].files[0]


def _present(name: str, data_dir: str | Path) -> list[str]:
  present = []
  for split in catalog.get(name).splits:
    with contextlib.suppress(UserError):
      _find(name, split, data_dir)
      present.append(split)
  return present


def _address(name: str) -> str:
  return next(iter(catalog.get(name).downloads.values())).address


def _pointer(name: str) -> Path:
  return cache_dir() / 'prepared' / f'{name}.json'


def _chosen(name: str) -> dict:
  pointer = _pointer(name)
  try:
    chosen = json.loads(pointer.read_text()) if pointer.is_file() else {}
    return {
      split: {key: Path(found[key]) for key in ('root', 'file')}
      for split, found in chosen.items()
      if split in catalog.get(name).splits
    }
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    said = f'{pointer} is damaged ({type(error).__name__}: {error})'
    raise UserError(f'{said}: run `mathqwen data prepare {name}` again') from None


def _write(path: Path, data: bytes) -> None:
  try:
    write_atomically(path, data)
  except OSError as error:
    raise _cannot_write(path, error) from error


def _cannot_write(path, error: OSError) -> UserError:
  return UserError(f'cannot write {path}: {error.strerror}; set MATHQWEN_CACHE to a directory that can be written')


def _is_whole(name: str, root: Path) -> bool:
  return (root / name / str(_Problems.VERSION) / 'dataset_info.json').is_file()


def _build(name: str, split: str, path: Path) -> Path:
  """The prepared directory of a split, written unless it is there: CACHE/prepared/gsm8k-train-DIGEST."""
  digest = hashlib.sha256(repr((name, split, path.name, tfds.__version__)).encode())
  data = catalog.get(name)
  beside = examples.companion(path, data)
  parser = inspect.getsourcefile(data.parse)  # the data set's task file
  for file in (path, beside, parser, examples.__file__, arithmetic.__file__, __file__):
    try:
      digest.update(hashlib.sha256(Path(file).read_bytes()).digest() if file else b'-')
    except OSError as error:
      raise UserError(f'cannot read {file}: {error.strerror}; check the path') from error
  root = cache_dir() / 'prepared' / f'{name}-{split}-{digest.hexdigest()[:20]}'
  if _is_whole(name, root):
    return root
  _write(root / 'source.json', json.dumps({'file': str(path)}).encode())
  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):  # it announces a download of unknown size
    builder = builder_class(name)(source=str(path.parent.parent), splits=(split,), data_dir=str(root))
    try:
      builder.download_and_prepare()
    except (OSError, RuntimeError) as error:  # Riegeli says RuntimeError
      if not _is_whole(name, root):  # else another process was first: its directory stood in the way of the rename
        raise UserError(
          f'cannot write the prepared {name} under {root}: {getattr(error, "strerror", None) or error}; set '
          f'MATHQWEN_CACHE to a directory that can be written'
        ) from error
  return root


def _rows(name: str, split: str, root: Path) -> tuple[list[Example], Report]:
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
  try:
    yield
  except Exception as error:  # TFDS, protobuf, Riegeli and JSON have each their own for a file that is not whole
    said = (str(error).splitlines() or [''])[0]
    raise UserError(
      f'the prepared copy in {root} is damaged ({type(error).__name__}: {said}); delete that directory'
    ) from error


# --- downloads: into CACHE/downloads, in the layout of `Split.files` ---


def fetch(name: str) -> Path:
  """Fetches the files of a data set that are not there yet; the folder with them."""
  folder = cache_dir() / 'downloads'
  data = catalog.get(name)
  for target, source in data.downloads.items():
    if not (folder / target).is_file():
      _download(source.address, folder / target, source.sha256)
  try:
    if data.unpack:
      data.unpack(folder)
  except OSError as error:
    raise _cannot_write(error.filename, error) from error
  except (tarfile.TarError, EOFError, zlib.error, ValueError, LookupError, TypeError, AttributeError) as error:
    said = f'what lies in {folder / name} is not what is published ({type(error).__name__}: {error})'
    raise UserError(f'{said}; delete that folder and prepare again') from error
  return folder


def _download(address: str, target: Path, sha256: str | None) -> None:
  print(f'downloading {address}', file=sys.stderr)
  remedy = f'try again, or fetch it by other means and pass --data-dir DIR with {target.parent.name}/{target.name}'
  try:
    with urllib.request.urlopen(address, timeout=60) as response:
      data = response.read()
  except (OSError, http.client.HTTPException) as error:
    raise UserError(f'cannot download {address}: {error}; {remedy}') from error
  found = hashlib.sha256(data).hexdigest()
  if sha256 is not None and found != sha256:
    raise UserError(f'{address} sent {len(data)} bytes with SHA-256 {found}, not {sha256}; {remedy}')
  _write(target, data)
