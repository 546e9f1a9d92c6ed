"""`clean`: a config's data without what should not be trained on, in a folder that says what was left out and why."""

import hashlib
import importlib.metadata
import json
import platform
import shlex
from collections.abc import Mapping, Sequence

from mathqwen import __version__, files
from mathqwen.cleaning import card, job, pipeline, stages
from mathqwen.cleaning.filters import REASONS
from mathqwen.cleaning.job import Job
from mathqwen.cleaning.settings import Cleaning
from mathqwen.data import catalog, contamination, origins, sources
from mathqwen.data.contamination import Found, Problem, TestSets
from mathqwen.data.left_out import LOST, Report
from mathqwen.data_config import DataConfig
from mathqwen.errors import Unreachable, UserError, report

REPORT = 'report.json'
_WORK = '.work'
_LARGEST = 2**32  # bytes of a report, which has the rows that overlap with each test problem


def clean(
  cfg: DataConfig,
  cleaning: Cleaning,
  out: str,
  test_sets: Mapping[str, tuple[str, str]],
  asked: Sequence[str] | None,
  beam_options: Sequence[str] = (),
  command: Sequence[str] = (),
  tokenizer: str | None = None,
) -> dict:
  """Cleans the sources of `cfg` into the folder `out`. Returns what its report.json holds.

  test_sets: {name: (source, split)} of all test sets. asked: the names of those that must be there; None takes all that
  are found. beam_options: as in `pipeline.run`. command: what was called, for the report. tokenizer: a directory, with
  which shards of tokens are written; None writes text.

  The same call continues one that was interrupted, and does nothing once it is complete.
  UserError: when a source cannot be read, `out` holds something else, or a source loses more than `cfg.max_left_out`.
  """
  pipeline.import_beam()
  target = files.path(out)
  with files.locked(target, 'cleaning'):
    # What this process knows of an earlier cleaning in the same folder, which somebody has removed since.
    job.load.cache_clear()
    stages.parts_of.cache_clear()
    how = None
    if tokenizer is not None:
      from mathqwen.cleaning import tokens  # imports Grain

      apart = bool(cfg.weights or cfg.epochs)
      how = job.Tokens(tokenizer, cfg.template, cfg.system_prompt, cfg.seq_len, apart)
      tokens.check(how)
    # First what fails at once: a wrong flag has one line.
    pipeline.check_options(beam_options)
    sources.parse_columns(cfg.columns)
    pieces, probes, not_read = job.plan_pieces(cfg.sources, cfg.data_dir)
    problems, missing = find_problems(test_sets, asked, cfg.data_dir)
    this = Job(
      sources=cfg.sources,
      data_dir=cfg.data_dir,
      columns=cfg.columns,
      any_turns=cfg.template != 'chatml',
      cleaning=cleaning,
      pieces=tuple(pieces),
      probes=tuple(probes),
      test_problems=job.hash_of(problems),
      tokens=how,
    )
    work = target / _WORK
    if (target / REPORT).is_file():
      return _finished(target, this)
    _prepare(target, work, this, problems)
    pipeline.run(str(work), beam_options)
    stages.check_folder(str(work))
    _check_columns(this, work)
    result = _report(this, str(work), not_read, missing, cfg, command)
    _check_left_out(this, result, cfg.max_left_out)
    _join(target, work)
    if how is not None:
      result['shards'] = _write_shards(target, work, this, how, result)
    card.write(target, result)
    files.write_atomically(target / REPORT, json.dumps(result, indent=1, ensure_ascii=False).encode())
    files.remove_tree(work)
  return result


def find_problems(
  test_sets: Mapping[str, tuple[str, str]], asked: Sequence[str] | None, data_dir: str | None
) -> tuple[list[Problem], dict[str, str]]:
  """(the problems of the test sets, why the others were not found). Arguments: of `clean`."""
  found: list[Problem] = []
  missing: dict[str, str] = {}
  for name in asked if asked is not None else test_sets:
    source, split = test_sets[name]
    try:
      rows, _ = sources.load(source, split, data_dir, strict=True)
    except Unreachable:
      raise
    except UserError as error:
      if asked is not None:
        raise
      missing[name] = str(error)
      continue
    found += [Problem(name, row.id, row.question) for row in rows]
  if missing:
    report(f'not compared with test sets that cannot be read ({REPORT} says why): {", ".join(missing)}')
  return found, missing


def _finished(target: files.AnyPath, this: Job) -> dict:
  """The report of a folder that is complete. UserError: when it is another cleaning's."""
  result = files.read_json_object(target / REPORT, _LARGEST)
  if result.get('job') != this.fingerprint:
    raise UserError(
      f'{target} holds another cleaning (other sources, a changed file, settings or test sets): give another --out'
    )
  report(f'{target} is complete already')
  return result


def _prepare(target: files.AnyPath, work: files.AnyPath, this: Job, problems: list[Problem]) -> None:
  """Writes the job for the workers. UserError: when the folder holds something else."""
  if (work / 'job.json').is_file():
    try:
      same = Job.from_json((work / 'job.json').read_bytes()).fingerprint == this.fingerprint
    except ValueError:
      same = False
    if not same:
      raise UserError(
        f'{target} holds an unfinished cleaning with other sources (or one of their files has changed), settings or '
        'test sets: give another --out, or remove it'
      )
    report(f'continuing the cleaning in {target}')
    return
  others = [path.name for path in target.glob('*') if not path.name.startswith('.')]
  if others:
    raise UserError(f'{target} is not empty ({", ".join(sorted(others)[:3])}): give another --out')
  contamination.write_problems(work / 'test_problems.jsonl', problems)
  files.write_atomically(work / 'job.json', this.to_json().encode())


def _check_columns(this: Job, work: files.AnyPath) -> None:
  """UserError: when a column that --map names is in no row of a file of the user's."""
  columns = sources.parse_columns(this.columns)
  for number, source in enumerate(this.sources):
    if catalog.of_source(source) is not None:
      continue
    of_source = Report()
    for at, piece in enumerate(this.pieces):
      if piece.source == number:
        done = json.loads((work / 'pieces' / f'{at:05d}.json').read_bytes())
        of_source.columns.update(done.get('columns', columns.values()))  # an older version did not write them
    of_source.check_columns(source, columns)


def _report(
  this: Job, work: str, reports: list[Report], missing: dict[str, str], cfg: DataConfig, command: Sequence[str]
) -> dict:
  """What report.json holds. reports: of the files of each source; those of the rows are added."""
  folder = files.path(work)
  kept = [0] * len(this.sources)
  read = [0] * len(this.sources)
  unread: list[set[str]] = [set() for _ in this.sources]
  found = Found()
  digest = hashlib.sha256()
  for number, piece in enumerate(this.pieces):
    done = json.loads((folder / 'pieces' / f'{number:05d}.json').read_bytes())
    not_read = Report.from_dict(done['report'])
    reports[piece.source].merge(not_read)
    unread[piece.source].update(done.get('unread', ()))
    read[piece.source] += sum(not_read.rows_left_out().values())  # the rows of a part do not include them
  for name, summary in stages.parts_of(work):
    source = summary['source']
    written = json.loads((folder / 'written' / f'{name}.json').read_bytes())
    for one in (summary['report'], written['report']):
      reports[source].merge(Report.from_dict(one))
    read[source] += summary['rows_in']
    kept[source] += written['rows']
    digest.update(written['sha256'].encode())
    found.merge(Found.from_json((folder / 'parts' / f'{name}.hits').read_bytes()))
  tests = job.load(work)[1]
  result = {
    'command': shlex.join(command),
    'job': this.fingerprint,
    'fingerprint': digest.hexdigest(),
    'versions': _versions(),
    'rows_read': sum(read),
    'rows': sum(kept),
    'sources': [],
    'settings': {f'clean.{name}': value for name, value in json.loads(this.to_json())['cleaning'].items()},
    'test_sets': found.summary(tests),
    'test_sets_not_found': missing,
    'contamination': _hits(found, tests),
  }
  for number, source in enumerate(this.sources):
    paths = [files.path(piece.path) for piece in this.pieces if piece.source == number and piece.path][:1]
    origin = origins.of(source, paths)
    result['sources'].append(
      {
        'source': source,
        'folder': this.folder(number),
        'licence': origin.get('licence', 'see its own page or files: none is recorded here'),
        'revision': origin.get('revision'),
        'weight': cfg.weights[number] if cfg.weights else None,
        'epochs': cfg.epochs[number] if cfg.epochs else None,
        'rows_read': read[number],
        'rows': kept[number],
        'left_out': reports[number].to_dict(),
        'unread': sorted(unread[number]),
      }
    )
  return result


def _hits(found: Found, tests: TestSets) -> list[dict]:
  """Each test problem that rows overlap with, with some of those rows."""
  result = []
  for kind, number in sorted(found.rows):
    problem = tests.problems[number]
    result.append(
      {
        'kind': kind,
        'test_set': problem.test_set,
        'id': problem.id,
        'question': problem.question,
        'rows': found.rows[kind, number],
        'shown': found.shown[kind, number],
      }
    )
  return result


def _versions() -> dict[str, str]:
  packages = ('apache-beam', 'rensa', 'numpy')
  return {
    'mathqwen': __version__,
    'python': platform.python_version(),
    **{name: importlib.metadata.version(name) for name in packages},
  }


def _check_left_out(this: Job, result: dict, limit: float) -> None:
  """UserError: when a source has no rows, or none that can be read, or the filters leave out too many of them.

  Duplicates and test problems do not count.
  """
  for number, entry in enumerate(result['sources']):
    left_out = Report.from_dict(entry['left_out'])
    pieces = sum(piece.source == number for piece in this.pieces)
    if left_out.counts['empty_file'] == pieces:
      raise UserError(f'{entry["source"]}: none of its {pieces:,} files has rows; fetch or write them again')
    if left_out.counts['malformed'] == entry['rows_read'] > 0:
      reasons = left_out.lines(3, ['malformed'])[0]
      raise UserError(f'{entry["source"]}: none of its {entry["rows_read"]:,} rows can be read: {reasons}')
    left_out.check(entry['source'], entry['rows'] + left_out.counts['near_duplicate'], limit, (*LOST, *REASONS))


def _join(target: files.AnyPath, work: files.AnyPath) -> None:
  """Writes left_out.jsonl from those of the parts."""
  with files.open_new(target / 'left_out.jsonl') as file:
    for name, _ in stages.parts_of(str(work)):
      for folder in ('parts', 'written'):
        file.write((work / folder / f'{name}.left_out').read_bytes())


def _write_shards(target: files.AnyPath, work: files.AnyPath, this: Job, how: job.Tokens, result: dict) -> dict:
  """Writes the shards of all parts. Returns how many tokens they have. UserError: when no row is left."""
  from mathqwen.cleaning import tokens

  left_out = {entry['source']: Report.from_dict(entry['left_out']) for entry in result['sources']}
  if not result['rows']:
    reasons = '; '.join(line for found in left_out.values() for line in found.lines(1))
    raise UserError(f'no row is left to write as shards ({reasons}): without --tokenizer, another --out lists them all')
  folders: dict[str, list[tuple[str, str]]] = {}  # folder -> (part, source)
  for name, summary in stages.parts_of(str(work)):
    number = summary['source']
    if not how.apart or result['sources'][number]['rows']:
      folders.setdefault(this.folder(number) if how.apart else '', []).append((name, this.sources[number]))
  about = {name: result[name] for name in ('command', 'settings', 'versions', 'test_sets', 'test_sets_not_found')}
  about['licences'] = {entry['source']: entry['licence'] for entry in result['sources']}
  cards = []
  for folder, parts in folders.items():
    own = {source: left_out[source] for source in dict.fromkeys(source for _, source in parts)} if folder else left_out
    cards.append(tokens.write_shards(target / folder if folder else target, work, parts, how, about, own))
  return {
    **{name: sum(one[name] for one in cards) for name in ('examples', 'tokens', 'loss_tokens')},
    'longest': max(one['longest'] for one in cards),
    'seq_len': how.seq_len,
    'fingerprint': ','.join(one['fingerprint'] for one in cards),
  }
