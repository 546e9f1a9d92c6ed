"""The stages on Apache Beam: pieces are read, then columns of keys grouped, then parts written.

Only names and numbers go through the pipeline, because the direct runner keeps in memory whatever does. A GroupByKey
between two stages lets the second begin when the first has ended.
"""

import contextlib
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mathqwen import files
from mathqwen.cleaning import job, stages
from mathqwen.errors import UserError, explain_os_error, report

_SMALL = 2**25  # bytes of sources below which starting worker processes takes longer than the work
_LOCAL = ('DirectRunner', 'FnApiRunner')
_POLL_SECONDS = 10
_MARKS = ('<<mathqwen: ', '>>')  # around a line for the user, in the text of an error that a runner passes on


class Stopped(Exception):
  """An error that the user can fix, as it leaves a worker."""


def run(work: str, options: Sequence[str]) -> None:
  """Runs the three stages of the job in the folder `work`.

  options: of Beam's pipelines, NAME=VALUE or NAME each. UserError: when one is unknown, or for an error that the user
  can fix, in whichever worker.
  """
  beam = import_beam()
  pipeline_options = parse_options(options, _defaults(work))
  logging.getLogger('apache_beam').setLevel(logging.CRITICAL)
  try:
    with _quiet_workers(), _progress(work), beam.Pipeline(options=pipeline_options) as pipeline:
      pieces = list(range(len(job.load(work)[0].pieces)))
      read = _stage(beam, 'read', pipeline | beam.Create(pieces), stages.read, work)
      grouped = _stage(beam, 'group', _after(beam, 'read', read, stages.group_numbers, work), stages.group, work)
      numbers = _after(beam, 'group', grouped, _part_numbers, work)
      _stage(beam, 'write', numbers, stages.write, work)
  except Exception as error:  # runners raise errors of their own for one of a worker
    before, after = _MARKS
    found = re.search(f'{before}(.*?){after}', str(error), re.DOTALL)
    if found is None:
      raise
    raise UserError(found[1]) from None


def import_beam() -> Any:
  """The module apache_beam. UserError: when it is not installed."""
  logging.disable(logging.WARNING)  # it warns of packages that nobody asked for
  try:
    import apache_beam
    import rensa  # noqa: F401 - the workers need it
  except ImportError as error:
    raise UserError(
      f"cleaning needs the package {error.name}: pip install 'mathqwen[beam]'; `mathqwen train` reads files without it"
    ) from None
  finally:
    logging.disable(logging.NOTSET)
  return apache_beam


def _stage(beam: Any, name: str, elements: Any, work_on: Callable[[str, int], Any], work: str) -> Any:
  """Calls work_on(work, element) for each element, on any worker."""
  return elements | f'spread {name}' >> beam.Reshuffle() | name >> beam.Map(_guarded, work_on, work)


def _after(beam: Any, name: str, done: Any, elements: Callable[[str], list[int]], work: str) -> Any:
  """The elements of the next stage, once all of `done` are there, which may be none."""
  always = done.pipeline | f'{name} of nothing' >> beam.Create([-1])
  return (
    (done, always)
    | f'{name} or nothing' >> beam.Flatten()
    | f'{name}, one key' >> beam.Map(lambda result: (0, result))
    | f'all of {name}' >> beam.GroupByKey()
    | f'after {name}' >> beam.FlatMap(_elements, elements, work)
  )


def _elements(_: Any, elements: Callable[[str], list[int]], work: str) -> list[int]:
  return elements(work)


def _part_numbers(work: str) -> list[int]:
  return list(range(len(stages.parts_of(work))))


def _guarded(element: int, work_on: Callable[[str, int], Any], work: str) -> Any:
  """work_on(work, element). Stopped: with a line, for what the user can fix."""
  before, after = _MARKS
  logging.getLogger('absl').setLevel(logging.ERROR)  # TFDS tells each file that it writes
  try:
    return work_on(work, element)
  except UserError as error:
    raise Stopped(f'{before}{error}{after}') from None
  except OSError as error:
    line = explain_os_error(error)
    if line is None:
      raise
    raise Stopped(f'{before}{line}{after}') from None


def _defaults(work: str) -> dict[str, object]:
  """Options of the direct runner: a process for each core, unless there is little to do."""
  pieces = job.load(work)[0].pieces
  cores = min(len(os.sched_getaffinity(0)), len(pieces))
  if cores == 1 or sum(piece.size for piece in pieces) < _SMALL:
    return {'direct_num_workers': 1, 'direct_running_mode': 'in_memory'}
  return {'direct_num_workers': cores, 'direct_running_mode': 'multi_processing'}


def parse_options(texts: Sequence[str], defaults: dict[str, object]) -> Any:
  """Beam's PipelineOptions from NAME=VALUE texts. UserError: when one is unknown to Beam, or its value not allowed."""
  from apache_beam.options.pipeline_options import PipelineOptions

  names = [text.partition('=')[0] for text in texts]
  runner = next((text.partition('=')[2] for text in texts if text.startswith('runner=')), _LOCAL[0])
  if runner in _LOCAL:
    texts = [*texts, *(f'{name}={value}' for name, value in defaults.items() if name not in names)]
  # DirectRunner may take another runner, which it would download.
  texts = [text for text in texts if not text.startswith('runner=')]
  texts = [f'runner={"FnApiRunner" if runner in _LOCAL else runner}', 'default_sdk_harness_log_level=CRITICAL', *texts]
  flags = [f'--{text}' for text in texts]
  options = PipelineOptions(flags)
  try:
    with contextlib.redirect_stderr(None):
      known = set(options.get_all_options())
  except SystemExit:
    raise UserError(f'--beam {" ".join(texts)}: Apache Beam does not take one of these values') from None
  for name in names:
    if name not in known:
      raise UserError(f'--beam {name}: Apache Beam has no such pipeline option; write it as its documentation does')
  return options


def check_options(texts: Sequence[str]) -> None:
  """UserError: when an option is unknown to Beam, or its runner is not here or needs others."""
  try:
    pipeline = import_beam().Pipeline(options=parse_options(texts, {}))
    shutil.rmtree(pipeline.local_tempdir)  # which Beam leaves, unless the pipeline runs
  except (ValueError, ImportError, AttributeError) as error:
    raise UserError(f'--beam {" ".join(texts)}: {" ".join(str(error).split())}') from None


@contextlib.contextmanager
def _quiet_workers() -> Iterator[None]:
  """Sets the log level of the direct runner's processes by a file: Beam passes them no options."""
  with tempfile.NamedTemporaryFile('w', suffix='.json') as file:
    file.write('{"default_sdk_harness_log_level": "ERROR"}')
    file.flush()
    os.environ['PIPELINE_OPTIONS_FILE'] = file.name
    try:
      yield
    finally:
      del os.environ['PIPELINE_OPTIONS_FILE']


@contextlib.contextmanager
def _progress(work: str) -> Iterator[None]:
  """Says every few seconds how far a run is."""
  ended = threading.Event()

  def watch() -> None:
    folder = files.path(work)
    pieces = len(job.load(work)[0].pieces)
    before = ''
    started = time.monotonic()
    while not ended.wait(_POLL_SECONDS):
      counts = {name: _count(folder / name) for name in ('pieces', 'groups', 'written')}
      line = f'{counts["pieces"]} of {pieces} pieces read'
      if counts['pieces'] == pieces:
        line += f', {counts["groups"]} columns of keys grouped, {counts["written"]} parts written'
      if line != before:
        report(f'{time.monotonic() - started:.0f} s: {line}')
      before = line

  thread = threading.Thread(target=watch, daemon=True)
  thread.start()
  try:
    yield
  finally:
    ended.set()
    thread.join()


def _count(folder: files.AnyPath) -> int:
  try:
    return sum(1 for path in folder.glob('*') if path.suffix in ('', '.json'))
  except OSError:
    return 0
