"""`Job`: what is cleaned and how, and the pieces that it is read in. Every worker has it from a file."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence

from mathqwen import files
from mathqwen.cleaning.settings import Cleaning
from mathqwen.data import catalog, examples, line_ranges, sources
from mathqwen.data.contamination import Problem, TestSets, read_problems
from mathqwen.data.left_out import Report
from mathqwen.data.line_ranges import LineRange
from mathqwen.errors import UserError
from mathqwen.settings import from_dict

PIECE_BYTES = 2**25  # of a JSON Lines file that is read as one piece
NAMED_BYTES = 2**23  # taken as the size of a named data set
_PROBED = 2**16  # bytes at each end of a file that tell whether it has changed


@dataclasses.dataclass(frozen=True)
class Piece:
  """What one worker reads: a file, a part of one, or a named data set."""

  source: int  # index in `Job.sources`
  path: str | None  # None: a named data set
  size: int  # bytes
  lines: LineRange | None = None  # None: the whole file


@dataclasses.dataclass(frozen=True)
class Tokens:
  """How rows become tokens: the settings data.* of those names, and the files of a tokenizer."""

  tokenizer: str
  template: str
  system_prompt: str
  seq_len: int
  apart: bool = False  # a folder of shards for each source, because training draws from each as the config says


@dataclasses.dataclass(frozen=True)
class Job:
  """A cleaning. Everything that decides its result is here."""

  sources: tuple[str, ...]
  data_dir: str | None
  columns: tuple[str, ...]
  any_turns: bool  # keep what only a chat template takes, as in `sources.load`
  cleaning: Cleaning
  pieces: tuple[Piece, ...]
  probes: tuple[str, ...]  # of the files: a hash of their ends
  test_problems: str  # a hash
  tokens: Tokens | None = None  # None: text is written

  @functools.cached_property
  def fingerprint(self) -> str:
    """Equal for jobs with the same result."""
    return hashlib.sha256(self.to_json().encode()).hexdigest()

  @functools.cached_property
  def names(self) -> list[dict[files.AnyPath, str]]:
    """`examples.names_of` the files of each source."""
    paths: list[list[files.AnyPath]] = [[] for _ in self.sources]
    for piece in self.pieces:
      if piece.path is not None:
        paths[piece.source].append(files.path(piece.path))
    return list(map(examples.names_of, paths))

  def folder(self, source: int) -> str:
    """Where a source is written below the output: '01-math'."""
    name = catalog.name_of(self.sources[source].rstrip('/')).rpartition('/')[2].split('.')[0]
    name = ''.join(char if char.isalnum() or char in '-_' else '_' for char in name)
    return f'{source:02d}-{name}'

  def to_json(self) -> str:
    """For a file of this run."""
    return json.dumps(dataclasses.asdict(self), indent=1)

  @classmethod
  def from_json(cls, text: str | bytes) -> 'Job':
    """What `to_json` wrote. ValueError: when another version wrote it."""
    value = json.loads(text)
    try:
      pieces = tuple(
        Piece(**piece | {'lines': piece['lines'] and LineRange(**piece['lines'])}) for piece in value.pop('pieces')
      )
      cleaning = from_dict(Cleaning, value.pop('cleaning'))
      tokens = value.pop('tokens')
      lists = {name: tuple(entry) if isinstance(entry, list) else entry for name, entry in value.items()}
      return cls(pieces=pieces, cleaning=cleaning, tokens=tokens and Tokens(**tokens), **lists)
    except (KeyError, TypeError, AttributeError) as error:
      raise ValueError(str(error)) from None


def plan_pieces(names: Sequence[str], data_dir: str | None) -> tuple[list[Piece], list[str], list[Report]]:
  """(the pieces of all sources, in order; a probe of each file; which files each source leaves out).

  UserError: when a source cannot be found.
  """
  pieces: list[Piece] = []
  probes = []
  reports = [Report() for _ in names]
  for number, source in enumerate(names):
    data = catalog.of_source(source)
    if data is not None:
      pieces.append(Piece(number, None, NAMED_BYTES))
      probes.append(catalog.options_of(data, source))
      continue
    for path in sources.find_files(source, 'train', left_out=reports[number]):
      probe, size = _probe(path)
      probes.append(probe)
      ranges = line_ranges.split(path, PIECE_BYTES)
      if ranges:
        pieces += [Piece(number, str(path), part.stop - part.start, part) for part in ranges]
      else:
        pieces.append(Piece(number, str(path), size))
  return pieces, probes, reports


def _probe(path: files.AnyPath) -> tuple[str, int]:
  """(a hash of both ends of a file, its size)."""
  try:
    file = files.open_ranges(path)
  except OSError as error:
    raise UserError(f'cannot read {path}: {error.strerror}; check the path') from error
  try:
    ends = file.read(0, _PROBED) + file.read(max(0, file.size - _PROBED), _PROBED)
    return hashlib.sha256(ends + str(file.size).encode()).hexdigest()[:16], file.size
  finally:
    file.close()


@functools.cache
def load(work: str) -> tuple[Job, TestSets]:
  """(job, index of its test problems) of a folder that `clean` wrote. Cached: a worker process needs them once."""
  folder = files.path(work)
  return Job.from_json((folder / 'job.json').read_bytes()), TestSets(read_problems(folder / 'test_problems.jsonl'))


def hash_of(problems: Sequence[Problem]) -> str:
  """A hash of test problems."""
  digest = hashlib.sha256()
  for problem in problems:
    digest.update(repr(dataclasses.astuple(problem)).encode('utf-8', 'surrogatepass'))
  return digest.hexdigest()[:16]
