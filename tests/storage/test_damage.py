"""Damaged checkpoints: seen whatever is damaged, set aside, and the run continues from the one before."""

import errno
import os
import random
import resource
import shutil
import sys
import types

import jax
import numpy as np
import pytest
from runs import assert_same_run, fails, state_of, target_of

from mathqwen import hf
from mathqwen.cli import main
from mathqwen.config import MeshConfig
from mathqwen.conversion.from_hf import convert_from_hf
from mathqwen.conversion.to_hf import convert_to_hf
from mathqwen.errors import Unreachable, UserError
from mathqwen.hardware import sharding
from mathqwen.storage import checkpoint, checksums, reading
from mathqwen.storage.source import open_source

# In each of three tests. By hand, 120 in all: MATHQWEN_FLIPS=40 pytest tests/storage/test_damage.py -k flipped
FLIPS = int(os.environ.get('MATHQWEN_FLIPS', '7'))


def files_of(folder):
  return sorted(path for path in folder.rglob('*') if path.is_file() and path.stat().st_size)


def flip_a_bit(path, rng):
  data = bytearray(path.read_bytes())
  data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
  path.write_bytes(data)


def damage(path):
  """Changes half of a file's bytes: of one bit alone, decompression may make nothing."""
  data = bytearray(path.read_bytes())
  data[::2] = bytes(byte ^ 0xFF for byte in data[::2])
  path.write_bytes(data)


def test_a_save_that_was_cut_off_is_not_seen(tiny, trained, copied):
  workdir = copied(20)
  os.rename(workdir / 'checkpoints' / '20', workdir / 'checkpoints' / '20.orbax-checkpoint-tmp')
  assert main(['train', tiny.config, '--workdir', str(workdir)]) == 0
  assert_same_run(workdir, trained)
  assert not list((workdir / 'checkpoints').glob('*tmp*'))


@pytest.mark.parametrize('gone', ['params', 'opt_state', 'data/metadata', 'params/manifest.ocdbt', '.'])
def test_strict_refuses_a_damaged_checkpoint(tiny, copied, capsys, gone):
  workdir = copied(20)
  path = workdir / 'checkpoints' / '20' / gone
  if path.is_file():
    path.unlink()
  else:
    shutil.rmtree(path)
    path.mkdir()
  line = fails(capsys, 'train', tiny.config, '--workdir', workdir, '--strict')
  assert f'the checkpoint {workdir}/checkpoints/20 is damaged' in line
  assert line.endswith(f'to continue from step 14, delete {workdir}/checkpoints/20')
  assert not (workdir / 'damaged').exists()


def test_a_damaged_checkpoint_is_set_aside(tiny, trained, copied, capsys):
  """One with changed bytes among its weights, and an empty one that is newer."""
  workdir = copied(20)
  (workdir / 'checkpoints' / '999').mkdir()
  (largest, *_) = sorted(files_of(workdir / 'checkpoints' / '20'), key=lambda path: -path.stat().st_size)
  damage(largest)
  (workdir / 'damaged' / '20').mkdir(parents=True)  # of an earlier time
  assert main(['train', tiny.config, '--workdir', str(workdir)]) == 0
  said = [line for line in capsys.readouterr().err.splitlines() if 'is damaged' in line]
  for line, step, target in zip(said, (999, 20), ('999', '20-2'), strict=True):
    assert line.startswith(f'the checkpoint {workdir}/checkpoints/{step} is damaged (')
    assert line.endswith(f'): it was moved to {workdir}/damaged/{target}, and the run continues from step 14')
    assert (workdir / 'damaged' / target).is_dir()
  assert (workdir / 'damaged' / '20-2' / largest.relative_to(workdir / 'checkpoints' / '20')).exists()
  rows = [line for line in (workdir / 'metrics.jsonl').read_text().splitlines() if 'damaged_checkpoint' in line]
  assert rows == [f'{{"step": 14, "damaged_checkpoint": {step}}}' for step in (999, 20)]
  assert_same_run(workdir, trained)


def test_a_damaged_checkpoint_without_an_earlier_one(tiny, copied, capsys):
  workdir = copied(7)
  shutil.rmtree(workdir / 'checkpoints' / '7' / 'params')
  for command in (['generate', workdir, '1+1='], ['train', tiny.config, '--workdir', workdir]):
    assert fails(capsys, *command).endswith('copy it again; there is no earlier one')
  assert (workdir / 'checkpoints' / '7').exists()


def test_weights_that_are_not_finite_are_no_checkpoint(copied):
  """Such as earlier versions saved: the one before is used."""
  workdir = copied(14)
  target = target_of(workdir)
  checkpoints = checkpoint.Checkpoints(str(workdir), checkpoint.Keep(9))
  params, opt_state, data = checkpoints.restore(14, target.params, target.opt_state)
  params['norm'] = params['norm'] * np.inf
  checkpoints.save(15, params, opt_state, {'data': data})
  checkpoints.wait()
  restored = checkpoints.restore_newest(target.params, target.opt_state)
  checkpoints.close()
  assert restored.step == 14 and restored.damaged == {15: str(workdir / 'damaged' / '15')}


TENSORSTORE = 'Error reading "norm/.zarray": Failed to open: "d/46": '


@pytest.mark.parametrize(
  'error, is_damage',
  [
    (PermissionError(errno.EACCES, 'Permission denied'), False),
    (OSError(errno.EIO, 'Input/output error'), False),
    (OSError(errno.ESTALE, 'Stale file handle'), False),
    (ValueError(f"PERMISSION_DENIED: {TENSORSTORE}Permission denied [os_error_code='13']"), False),
    (ValueError(f'UNKNOWN: {TENSORSTORE}[OS error 5: EIO Input/output error]'), False),
    (ValueError('RESOURCE_EXHAUSTED: too many requests'), False),
    (FileNotFoundError(errno.ENOENT, 'No such file or directory'), True),
    (NotADirectoryError(errno.ENOTDIR, 'Not a directory'), True),
    (ValueError(f"NOT_FOUND: {TENSORSTORE}[os_error_code='2']"), True),
    (OSError('Not a gzipped file'), True),
  ],
  ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_read_just_now_is_not_damaged(tmp_path, error, is_damage):
  with pytest.raises(reading.Damage if is_damage else Unreachable), reading.explained(tmp_path / '20'):
    try:
      raise error
    except OSError as cause:
      raise ValueError('data cannot be read') from cause


def test_a_file_that_does_not_open_is_not_missing(tmp_path):
  """Orbax says so of a folder that it may not enter; here no more files may be open."""
  (tmp_path / 'params').mkdir()
  limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
  free = os.dup(0)
  os.close(free)
  with pytest.raises(Unreachable, match=f'the checkpoint {tmp_path} cannot be read just now .Too many open files'):
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, most))
    try:
      with reading.explained(tmp_path):
        raise FileNotFoundError('no subdirectory params')
    finally:
      resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))


def test_a_checkpoint_that_cannot_be_read_just_now_stays(copied, monkeypatch):
  workdir = copied(14)
  read_json = checksums.read_json

  def refuse(step, item, record=None):
    if step.name == '14' and item == 'data':
      raise PermissionError(errno.EACCES, 'Permission denied', str(step / item))
    return read_json(step, item, record)

  target = target_of(workdir)
  checkpoints = checkpoint.Checkpoints(str(workdir), checkpoint.Keep(9))
  monkeypatch.setattr(checksums, 'read_json', refuse)
  with pytest.raises(UserError, match=r'14 cannot be read just now \(Permission denied\): it stays where it is'):
    checkpoints.restore_newest(target.params, target.opt_state)
  checkpoints.close()
  assert (workdir / 'checkpoints' / '14').is_dir() and not (workdir / 'damaged').exists()


def test_a_checkpoint_without_checksums_is_read(copied, capsys):
  workdir = copied(7)
  shutil.rmtree(workdir / 'checkpoints' / '7' / 'checksums')
  state_of(workdir, 7)
  assert capsys.readouterr().err.splitlines() == [
    f'{workdir}/checkpoints/7 was written without checksums: whether it is damaged cannot be seen'
  ]


def read_model(path):
  """All of a MODEL that is read: config, prompt, tokenizer, each weight alone and all together."""
  source = open_source(str(path))
  weights = {name: source.weights.read(name) for name in source.weights.paths()}
  mesh = sharding.make_mesh(MeshConfig(), jax.local_devices()[:1])
  together = source.weights.read_all(sharding.params_shardings(mesh, source.config))
  assert all(np.array_equal(array, hf.weight_at(together, name)) for name, array in weights.items())
  weights = {'/'.join(name): array for name, array in weights.items()}
  return weights, (source.config, source.system_prompt, source.tokenizer.encode('1+1=2'))


def equal(ours, theirs):
  """Whether two pairs of ({name: array}, anything else) are the same."""
  same = ours[0].keys() == theirs[0].keys() and ours[1] == theirs[1]
  return same and all(np.array_equal(ours[0][name], theirs[0][name]) for name in ours[0])


def flip_bits(folder, read, seed):
  """Changes FLIPS bits, one at a time in any file of `folder`: `read` must refuse each, or read what it read before."""
  rng = random.Random(seed)
  expected = read(folder)
  for number in range(FLIPS):
    path = rng.choice(files_of(folder))
    whole = path.read_bytes()
    flip_a_bit(path, rng)
    try:
      assert equal(read(folder), expected), f'flip {number}: a bit of {path} went unnoticed'
    except UserError as error:
      assert '\n' not in str(error)
    path.write_bytes(whole)


def test_a_flipped_bit_is_seen_when_a_run_continues(copied):
  workdir = copied(7)
  target = target_of(workdir)
  flip_bits(workdir / 'checkpoints', lambda folder: state_of(folder.parent, 7, target), seed=1)


def test_a_flipped_bit_is_seen_when_a_run_is_read(copied):
  flip_bits(copied(7), read_model, seed=2)


@pytest.fixture(scope='module')
def converted(trained, tmp_path_factory):
  folder = tmp_path_factory.mktemp('converted')
  convert_to_hf(str(trained), str(folder / 'hf'), compare=False)
  convert_from_hf(str(folder / 'hf'), str(folder / 'model'), compare=False)
  return folder / 'model'


def test_a_flipped_bit_is_seen_in_a_converted_model(converted):
  flip_bits(converted, read_model, seed=3)


def test_reads_that_a_failed_one_leaves_behind_say_nothing(monkeypatch):
  """Orbax's coroutines turn their end into an error of their own; Python shows it when they are thrown away."""
  seen = []
  monkeypatch.setattr(sys, 'unraisablehook', lambda unraisable: seen.append(str(unraisable.exc_value)))
  checkpoint._ignore_abandoned_operations()

  @types.coroutine
  def reading(text):
    try:
      yield
    except GeneratorExit:
      raise Exception(text) from None

  async def read(text):
    await reading(text)

  for text in ('Encountered error while reading array index: (slice(0, 2, 1),)', 'another'):
    coroutine = read(text)
    coroutine.send(None)
    del coroutine
  assert seen == ['another']
