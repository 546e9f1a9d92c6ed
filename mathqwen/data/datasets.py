r"""GSM8K, MATH, Math401 and Math23K as tensorflow-datasets builders, without TensorFlow.

  gsm8k/train.jsonl.gz --parse--> rows   --TFDS--> CACHE/prepared/gsm8k-train-DIGEST/gsm8k/1.0.0/*.array_record
                             \--> report --TFDS--> metadata.json beside: malformed rows, by line

CACHE is $MATHQWEN_CACHE, by default ~/.cache/mathqwen. DIGEST covers the source files and the parsers, so another file
or another parser is another directory. TFDS writes to incomplete.* and renames at the end: what has the final name is
whole. The folder that is read (data_dir) is never written to.
"""

import contextlib
import hashlib
import http.client
import io
import json
import os
import re
import sys
import tarfile
import urllib.request
import zlib
from pathlib import Path

import tensorflow_datasets as tfds

from mathqwen.data import arithmetic, examples
from mathqwen.data.examples import Example, Report
from mathqwen.errors import UserError
from mathqwen.files import write_atomically

_GITHUB = 'https://raw.githubusercontent.com'
_GSM8K = f'{_GITHUB}/openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c/grade_school_math/data'
_MATH23K = f'{_GITHUB}/phj95304/math23K/4dd166a7c2e69290d345e115b41c1300e55642b8'
# data set -> file below the folder of downloads -> (address, SHA-256; None where none was on record)
DOWNLOADS: dict[str, dict[str, tuple[str, str | None]]] = {
  'gsm8k': {
    'gsm8k/train.jsonl': (f'{_GSM8K}/train.jsonl', '17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465'),
    'gsm8k/test.jsonl': (f'{_GSM8K}/test.jsonl', '3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14'),
  },
  'math': {
    'math/MATH.tar': (
      'https://people.eecs.berkeley.edu/~hendrycks/MATH.tar',
      '0fbe4fad0df66942db6c221cdcc95b298cc7f4595a2f0f518360cce84e90d9ac',
    ),
    'math/test500.jsonl': (
      'https://huggingface.co/datasets/HuggingFaceH4/MATH-500/resolve/'
      '6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be/test.jsonl',
      '35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132',
    ),
  },
  'math401': {
    'math401/math401.json': (
      f'{_GITHUB}/GanjinZero/math401-llm/3def7f1fc44246a93b1d61fed1ae0b4e1aaaf6c7/math401.json',
      '0fb57c2bd632459aa325ac517109e25f940c6a732b984b1611853514db131ae2',
    ),
  },
  'math23k': {
    'math23k/math23k_test.json': (
      f'{_GITHUB}/SumbeeLei/Math_EN/34d61ea49c99d4327813afff7c8abe50af60b10f/data/math23k_test.json',
      '3145d8f3eb33f3befc85e1023886b6b2c10eb40279068e989cd6cd7e56e6b8d0',
    ),
    'math23k/question_CH.txt': (f'{_MATH23K}/question_CH.txt', None),
    'math23k/answersheet.json': (f'{_MATH23K}/test_answersheet_Math23.json', None),
  },
}
# data set of `load` -> builder; MATH-500 is a split of MATH
_SPLITS = {
  'gsm8k': {'train': ('gsm8k', 'train'), 'test': ('gsm8k', 'test')},
  'math': {'train': ('math', 'train'), 'test': ('math', 'test'), 'test500': ('math500', 'test')},
  'math401': {'test': ('math401', 'test')},
  'math23k': {'train': ('math23k', 'train'), 'test': ('math23k', 'test')},
}
_FIELDS = ('id', 'question', 'solution', 'answer', 'extra', 'where')


class _Info(tfds.core.DatasetInfo):
  def initialize_from_bucket(self) -> None:
    """Nothing: TFDS would look for published statistics and leave an empty folder in /tmp for each builder."""


class _Problems(tfds.core.GeneratorBasedBuilder):
  """Splits of one data set read from `source`, a folder in the layout of examples.FILES, or else downloaded."""

  VERSION = tfds.core.Version('1.0.0')
  HOMEPAGE = ''

  def __init__(self, *, source: str | None = None, splits: tuple[str, ...] | None = None, **kwargs):
    self.source, self.wanted = source, splits
    super().__init__(file_format='array_record', **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return _Info(
      builder=self,
      description=type(self).__doc__,
      homepage=self.HOMEPAGE,
      disable_shuffling=True,
      features=tfds.features.FeaturesDict({field: tfds.features.Text() for field in _FIELDS}),
      metadata=tfds.core.MetadataDict(report={}),
    )

  def _split_generators(self, dl_manager):
    source = self.source or fetch(self.name)
    result = {}
    for split in self.wanted or _present(self.name, source):
      parsed, report = examples.parse_file(_find(self.name, split, source), *_SPLITS[self.name][split])
      self.info.metadata['report'][split] = report.to_dict()
      result[split] = self._generate_examples(parsed)
    return result

  def _generate_examples(self, parsed: list[Example]):
    for index, example in enumerate(parsed):
      row = {field: getattr(example, field) for field in _FIELDS}
      yield index, row | {'extra': json.dumps(example.extra, ensure_ascii=False)}


class Gsm8k(_Problems):
  """Grade-school word problems with worked solutions (Cobbe et al. 2021, arXiv 2110.14168)."""

  HOMEPAGE = 'https://github.com/openai/grade-school-math'


class Math(_Problems):
  """Competition mathematics (Hendrycks et al. 2021, arXiv 2103.03874); test500 is the split of arXiv 2305.20050."""

  HOMEPAGE = 'https://github.com/hendrycks/math'


class Math401(_Problems):
  """401 arithmetic expressions in 17 groups (Yuan et al. 2023, arXiv 2304.02015)."""

  HOMEPAGE = 'https://github.com/GanjinZero/math401-llm'


class Math23k(_Problems):
  """Chinese word problems with equations (Wang, Liu and Shi 2017)."""

  HOMEPAGE = 'https://github.com/SumbeeLei/Math_EN'


BUILDERS = {'gsm8k': Gsm8k, 'math': Math, 'math401': Math401, 'math23k': Math23k}


def cache_dir() -> Path:
  return Path(os.environ.get('MATHQWEN_CACHE') or Path.home() / '.cache' / 'mathqwen')


def read(source: str, split: str, data_dir: str | None = None) -> tuple[list[Example], Report, Path]:
  """(examples, report of malformed rows, folder of the source file) of a split, prepared first where need be.

  Without data_dir: from the files that `prepare` was last given, or from its copy when they are gone.
  """
  for name, splits in _SPLITS.items():
    for own, public in splits.items():
      if public == (source, split):
        root, path = _locate(name, own, data_dir)
        return *_rows(name, own, root), path.parent
  raise UserError(f'{source} has no split {split!r}: it has {", ".join(examples.FILES[source])}')


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
  if name not in BUILDERS:
    raise UserError(f'unknown data set {name!r}: the names are {", ".join(BUILDERS)}')
  if data_dir is None and download:
    data_dir = str(fetch(name))
  if data_dir is not None:
    files = {split: _find(name, split, data_dir).absolute() for split in _present(name, data_dir)}
    if not files:
      _find(name, next(iter(_SPLITS[name])), data_dir)
    chosen = {split: {'root': str(_build(name, split, path)), 'file': str(path)} for split, path in files.items()}
    _write(_pointer(name), json.dumps(chosen, indent=1).encode())
  splits, report, source = {}, {}, None
  for split in _chosen(name) or list(_SPLITS[name])[:1]:
    root, path = _locate(name, split, None)
    with _undamaged(root):
      info = BUILDERS[name](data_dir=str(root)).info
      splits[split], report[split] = info.splits[split].num_examples, dict(info.metadata['report'][split])
    source = str(path.parent.parent)
  return {'name': name, 'source': source, 'path': str(cache_dir() / 'prepared'), 'splits': splits, 'report': report}


def _find(name: str, split: str, data_dir: str | Path) -> Path:
  return examples.find(*_SPLITS[name][split], data_dir)


def _file(name: str, split: str) -> str:
  source, own = _SPLITS[name][split]
  return examples.FILES[source][own][0]


def _present(name: str, data_dir: str | Path) -> list[str]:
  present = []
  for split in _SPLITS[name]:
    with contextlib.suppress(UserError):
      _find(name, split, data_dir)
      present.append(split)
  return present


def _address(name: str) -> str:
  return next(iter(DOWNLOADS[name].values()))[0]


def _pointer(name: str) -> Path:
  return cache_dir() / 'prepared' / f'{name}.json'


def _chosen(name: str) -> dict:
  pointer = _pointer(name)
  try:
    chosen = json.loads(pointer.read_text()) if pointer.is_file() else {}
    return {
      split: {key: Path(found[key]) for key in ('root', 'file')}
      for split, found in chosen.items()
      if split in _SPLITS[name]
    }
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    said = f'{pointer} is damaged ({type(error).__name__}: {error})'
    raise UserError(f'{said}: run `mathqwen data prepare {name}` again') from None


def _write(path: Path, data: bytes) -> None:
  try:
    write_atomically(path, data)
  except OSError as error:
    raise UserError(
      f'cannot write {path}: {error.strerror}; set MATHQWEN_CACHE to a directory that can be written'
    ) from error


def _is_whole(name: str, root: Path) -> bool:
  return (root / name / str(_Problems.VERSION) / 'dataset_info.json').is_file()


def _build(name: str, split: str, path: Path) -> Path:
  """The prepared directory of a split, written unless it is there: CACHE/prepared/gsm8k-train-DIGEST."""
  digest = hashlib.sha256(repr((name, split, path.name, tfds.__version__)).encode())
  beside = examples.companion(path) if name == 'math' else None
  for file in (path, beside, examples.__file__, arithmetic.__file__, __file__):
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
    builder = BUILDERS[name](source=str(path.parent.parent), splits=(split,), data_dir=str(root))
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
    builder = BUILDERS[name](data_dir=str(root))
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


# --- downloads: into CACHE/downloads, in the layout of examples.FILES ---


def fetch(name: str) -> Path:
  """Fetches the files of a data set that are not there yet; the folder with them."""
  folder = cache_dir() / 'downloads'
  for target, (address, sha256) in DOWNLOADS[name].items():
    if not (folder / target).is_file():
      _download(address, folder / target, sha256)
  try:
    if name == 'math':
      _unpack_math(folder / 'math')
    if name == 'math23k':
      _join_math23k(folder / 'math23k')
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


def _unpack_math(folder: Path) -> None:
  """MATH.tar holds MATH/train/algebra/0.json ...: one line per member, sorted by path, and the paths beside."""
  if all((folder / name).is_file() for name in ('train.jsonl', 'test.jsonl')):
    return
  members: dict[str, dict[str, bytes]] = {'train': {}, 'test': {}}
  with tarfile.open(folder / 'MATH.tar') as archive:
    for member in archive:
      if match := re.fullmatch(r'(?:\./)?MATH/((train|test)/\w+/\d+\.json)', member.name):
        members[match.group(2)][match.group(1)] = archive.extractfile(member).read()
  for split, files in members.items():
    if not files:
      raise UserError(f'{folder / "MATH.tar"} holds no MATH/{split}/*/*.json; delete it and prepare again')
    lines = [json.dumps(json.loads(files[path]), ensure_ascii=False) for path in sorted(files)]
    _write(folder / f'{split}_paths.txt', ('\n'.join(sorted(files)) + '\n').encode())
    _write(folder / f'{split}.jsonl', ('\n'.join(lines) + '\n').encode())


def _join_math23k(folder: Path) -> None:
  """Train rows from the question list (line n is id n) and the answer sheet ([{"1": {answer, equation}}, ...]).

  The thousand test rows are among them: they check the alignment and are then left out.
  """
  if (folder / 'train.jsonl').is_file():
    return
  test = {record['id']: record for _, record in examples.records(folder / 'math23k_test.json')}
  questions = (folder / 'question_CH.txt').read_text('utf-8').rstrip('\n').split('\n')
  sheet = {}
  for entry in json.loads((folder / 'answersheet.json').read_text('utf-8')):
    sheet |= entry
  rows = []
  for number, question in enumerate(questions, 1):
    found = sheet.get(str(number))
    if found is None:
      raise UserError(f'{folder / "answersheet.json"} has no entry {number}; delete {folder} and prepare again')
    row = {
      'id': str(number),
      'original_text': question.strip(),
      'segmented_text': None,
      'equation': f'x={found["equation"]}',
      'ans': str(found['answer']),
    }
    other = test.get(row['id'])
    if other is None:
      rows.append(row)
    elif any(other[key].strip() != row[key] for key in ('original_text', 'equation', 'ans')):
      raise UserError(
        f'{folder}: question {number} differs between the train and the test files; delete the folder and prepare again'
      )
  text = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
  _write(folder / 'train.jsonl', text.encode())
