"""What a workdir holds beside the arrays: whose run it is, its config, its tokenizer, and which steps it has.

The config inside a checkpoint is the truth. WORKDIR/experiment.json is a copy of it for people, and the config of a run
that has not saved yet.
"""

import contextlib
import errno
import hashlib
import json
import secrets
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax

from mathqwen import config as config_lib
from mathqwen import files
from mathqwen.chat.chat_format import TEMPLATE_FILE, ChatFormat, save_tokenizer
from mathqwen.errors import UserError, report
from mathqwen.hardware import hosts
from mathqwen.storage import checksums, reading, resume
from mathqwen.text.tokenizer import Tokenizer

EXPERIMENT = 'experiment.json'
TOKENIZER = 'tokenizer'
_SHARED_SECONDS = 10  # within which every host must see a new file in the workdir


# --- the run of a workdir ---


def claim(workdir: str, experiment: config_lib.Experiment) -> None:
  """Makes `workdir` this experiment's: writes the resolved config into it, on host 0. Call `check_claim` before it.

  UserError: when it cannot be written.
  """
  if jax.process_index() == 0:
    with explained(workdir):
      files.write_atomically(files.path(workdir) / EXPERIMENT, config_lib.to_json(experiment).encode())


def check_shared(workdir: str) -> None:
  """UserError, on all hosts: when one does not see what host 0 writes into `workdir`. All hosts must call it."""
  if hosts.share()[1] == 1 or files.is_remote(workdir):
    return
  is_first = hosts.share()[0] == 0
  name = f'.shared.{secrets.token_hex(8)}'  # new: no network file system remembers that there was none
  if is_first:
    with explained(workdir):
      (files.path(workdir) / name).touch()
  (name, *_) = hosts.gather(name)
  mark = files.path(workdir) / name
  try:
    if not all(hosts.gather(_appears(mark))):
      raise UserError(f'the hosts see different folders at {workdir}: give all of them the same --workdir')
  finally:
    if is_first:
      mark.unlink(missing_ok=True)


def _appears(path: files.AnyPath) -> bool:
  """Whether a file is there within `_SHARED_SECONDS`."""
  for _ in range(10):
    if path.exists():
      return True
    time.sleep(_SHARED_SECONDS / 10)
  return False


def check_claim(workdir: str, experiment: config_lib.Experiment) -> None:
  """Creates `workdir`. UserError: when its checkpoints are of a run that `experiment` cannot continue.

  Also when it cannot be made or read. A copy of the config that differs from the one in the checkpoints is reported.
  """
  directory = files.path(workdir)
  with explained(workdir):
    files.make_folder(directory)
    if is_converted(directory):
      raise UserError(f'{workdir} holds a converted model: train from it with --init {workdir} and another --workdir')
    steps = reading.finished_steps(directory / 'checkpoints')
    if not steps:
      return
    step, before = _newest_config(directory, steps)
    if before is None:  # none can be read: restoring will say why, if the copy does not refuse first
      before = _copied_config(directory)
    else:
      _report_other_copy(directory, before, step)
    # Of the newest step, even where its config is damaged: its weights may be whole, and are restored then.
    if before is not None and (refusal := resume.refusal(before, experiment, steps[-1])):
      raise UserError(f'{workdir} {refusal}')


@contextlib.contextmanager
def explained(workdir: str) -> Iterator[None]:
  """Turns an error of the file system into one line; a full disk is explained elsewhere."""
  try:
    yield
  except OSError as error:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
      raise
    raise UserError(f'--workdir {workdir}: {error.strerror or error}; use a directory that can be written') from None


def _newest_config(directory: files.AnyPath, steps: list[int]) -> tuple[int, config_lib.Experiment] | tuple[None, None]:
  """(step, its config) of the newest step that has a whole one; (None, None) where none has."""
  for step in reversed(steps):
    with contextlib.suppress(reading.Damage):
      return step, config_of(directory / 'checkpoints' / str(step))
  return None, None


def config_of(step: files.AnyPath) -> config_lib.Experiment:
  """The config inside a checkpoint, given its directory. Damage: when it cannot be read, or is not what was written."""
  with reading.explained(step):
    value = checksums.read_json(step, 'config', checksums.read(step))
    return config_lib.from_json(json.dumps(value), str(step / 'config'))


def config_of_run(workdir: files.AnyPath) -> config_lib.Experiment | None:
  """The config in the newest checkpoint that has a whole one, else experiment.json's; None where there is neither.

  UserError: when experiment.json counts, and is damaged.
  """
  _, inside = _newest_config(workdir, reading.finished_steps(workdir / 'checkpoints'))
  return _copied_config(workdir) if inside is None else inside


def sessions_of(step: files.AnyPath) -> list[dict]:
  """The sessions of a run up to a checkpoint, given its directory; [] where an earlier version wrote none.

  UserError: when they are not what was written.
  """
  found = item_of(step, 'sessions')
  return [] if found is None else found['sessions']


def item_of(step: files.AnyPath, item: str) -> Any:
  """A JSON item of a checkpoint, given its directory; None where it has none.

  UserError: when it is not what was written.
  """
  if not (step / item).exists():
    return None
  with reading.explain_damage(step):
    return checksums.read_json(step, item, checksums.read(step))


def _copied_config(directory: files.AnyPath) -> config_lib.Experiment | None:
  """What experiment.json says; None where it is missing. UserError: when it is damaged."""
  file = directory / EXPERIMENT
  if not file.exists():
    return None
  try:
    return config_lib.from_json(file.read_text(), str(file))
  except UnicodeDecodeError as error:
    raise UserError(f'{file} is not a resolved config of mathqwen ({error}): copy it again') from None


def _report_other_copy(directory: files.AnyPath, inside: config_lib.Experiment, step: int) -> None:
  """Reports an experiment.json that is missing, damaged, or of another config than the checkpoints."""
  try:
    copy = _copied_config(directory)
  except UserError:
    difference = 'is damaged'
  else:
    if copy is None:
      difference = 'is missing'
    elif not resume.refusal(inside, copy, step):
      return
    else:
      difference = 'has another config'
  if jax.process_index() == 0:
    report(f'{directory / EXPERIMENT} {difference}: the config in checkpoints/{step} counts')


# --- its steps ---


def is_converted(workdir: str | files.AnyPath) -> bool:
  """Whether `workdir` holds what `converted.write_model` wrote, not a run."""
  first = files.path(workdir) / 'checkpoints' / '0'
  return (first / 'params').exists() and not (first / 'opt_state').exists() and not (first / 'data').exists()


def step_path(path: str, step: int) -> files.AnyPath:
  """Directory of `step`, for a path that `find_checkpoint` accepts."""
  directory = files.path(path)
  if directory.name == str(step):
    return directory
  return directory / str(step) if directory.name == 'checkpoints' else directory / 'checkpoints' / str(step)


def find_checkpoint(path: str) -> tuple[str, config_lib.Experiment, int] | None:
  """(workdir, experiment, step) of a workdir, of its checkpoints/, or of one of its steps; None for other paths.

  UserError: when there is no finished checkpoint, or not this step, or a config is damaged.
  """
  directory = files.path(path).absolute()
  workdir, name = directory, None
  if directory.name == 'checkpoints':
    workdir = directory.parent
  elif directory.parent.name == 'checkpoints':
    workdir, name = directory.parent.parent, directory.name
  steps = reading.finished_steps(workdir / 'checkpoints')
  has_config = any((workdir / 'checkpoints' / str(step) / 'config').exists() for step in steps)
  if not has_config and _copied_config(workdir) is None:
    return None
  if not steps:
    raise UserError(f'{path} holds no finished checkpoint yet: let `mathqwen train` save one first')
  if name is None:
    step = steps[-1]
  elif name.isdecimal() and int(name) in steps:
    step = int(name)
  else:
    raise UserError(f'{path} is not a checkpoint step: give {workdir} for its newest ({steps[-1]})')
  return str(workdir), _config_for_reading(workdir, step), step


def _config_for_reading(workdir: files.AnyPath, step: int) -> config_lib.Experiment:
  """The config of a step; experiment.json's counts only where the step has none. UserError: when it is damaged."""
  folder = workdir / 'checkpoints' / str(step)
  is_older = (folder / 'params').exists() and not (folder / 'config').exists()  # a converted model of an older version
  if is_older and (copy := _copied_config(workdir)) is not None:
    return copy
  with reading.explain_damage(folder):
    inside = config_of(folder)
  _report_other_copy(workdir, inside, step)
  return inside


# --- its tokenizer ---


def write_tokenizer(workdir: str, tokenizer: Tokenizer, chat: ChatFormat) -> None:
  """Writes a run's tokenizer into its workdir, or again those of its files that are missing, empty or damaged.

  Without a checkpoint, a folder that is there is of an attempt that saved nothing, and is removed first.
  chat: what the run is trained with; its template is one of the files.
  """
  directory = files.path(workdir)
  folder = directory / TOKENIZER
  steps = reading.finished_steps(directory / 'checkpoints')
  if not steps or not folder.exists():
    if folder.exists():
      files.remove_tree(folder)
    save_tokenizer(tokenizer, folder, chat=chat)
    return
  written = _written_tokenizer(directory, steps)
  there = checksums.of_files(folder)
  with tempfile.TemporaryDirectory() as temporary:
    save_tokenizer(tokenizer, temporary, chat=chat)
    for file in sorted(files.path(temporary).iterdir()):
      target = folder / file.name
      whole = there.get(file.name) == written[file.name] if file.name in written else file.name in there
      if not whole or not target.stat().st_size:
        # An older version may have written fewer files.
        if file.name in written or not written:
          report(f'{target} is damaged or missing, and is written again')
        files.write_atomically(target, file.read_bytes())


def template_file(workdir: str) -> files.AnyPath:
  """Where a run keeps the Jinja text that it is trained with."""
  return files.path(workdir) / TOKENIZER / TEMPLATE_FILE


def saved_template(workdir: str) -> tuple[str | None, str | None]:
  """(the Jinja text that the run of a workdir is trained with, its SHA-256 as the newest checkpoint has it).

  (None, None) without a checkpoint; None for a text that is missing or damaged.
  """
  directory = files.path(workdir)
  steps = reading.finished_steps(directory / 'checkpoints')
  file = template_file(workdir)
  digest = _written_tokenizer(directory, steps).get(file.name)
  if not steps or not file.exists():
    return None, digest
  content = file.read_bytes()
  whole = digest in (None, hashlib.sha256(content).hexdigest())
  return content.decode() if whole else None, digest


def check_tokenizer(workdir: str, step: int) -> None:
  """UserError: when a file of the tokenizer differs from what was there when `step` was saved."""
  directory = files.path(workdir)
  written = _written_tokenizer(directory, [step])
  there = checksums.of_files(directory / TOKENIZER) if written else {}
  for name, checksum in written.items():
    if there.get(name) != checksum:
      raise UserError(
        f'{directory / TOKENIZER / name} is damaged or missing: copy it again; the same `mathqwen train` command, or '
        'the same `mathqwen convert`, writes it again'
      )


def _written_tokenizer(directory: files.AnyPath, steps: list[int]) -> dict[str, str]:
  """{name: SHA-256} of the tokenizer's files, as the newest step with checksums has them; {} without one."""
  for step in reversed(steps):
    with contextlib.suppress(ValueError, OSError):
      record = checksums.read(directory / 'checkpoints' / str(step))
      if record is not None:
        return record['tokenizer']
  return {}
