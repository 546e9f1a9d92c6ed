"""What made a run: its sessions in the workdir and in each checkpoint."""

import json
import shutil

import pytest

import mathqwen
from mathqwen import cli
from mathqwen.errors import UserError
from mathqwen.storage import provenance
from mathqwen.training import reproduce


def test_each_session_of_a_run_is_kept(trained, tiny, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(trained, workdir)
  for later in ('14', '20'):
    shutil.rmtree(workdir / 'checkpoints' / later)
  with (workdir / provenance.SESSIONS).open('ab') as file:
    file.write(b'\xff damaged\n[]\n')
  assert cli.main(['train', tiny.config, '--workdir', str(workdir), '--set', 'train.remat=full']) == 0
  first, *others, second = provenance.read_sessions(str(workdir))  # others: tests that ran in the shared workdir
  assert (first['from_step'], second['from_step']) == (0, 7)
  assert (first['settings']['train.remat'], second['settings']['train.remat']) == ('none', 'full')
  assert second['data'] == first['data'] and second['data']['examples'] == [152]
  assert second['version'] == mathqwen.__version__ and second['packages']['jax'] and second['python']
  assert (second['platform'], second['devices'], second['hosts']) == ('cpu', 1, 1)
  assert second['command'] and second['settings']['data.seed'] == second['settings']['train.seed'] == 0
  saved = json.loads((workdir / 'checkpoints' / '20' / 'sessions' / 'metadata').read_text())
  assert saved['sessions'] == [first, *others, second]


def test_a_run_made_again(trained, tiny, tmp_path, capsys):
  """On the same machine: the same to the last bit. `train.seed` is not: other weights, the same batches."""
  assert cli.main(['train', '--reproduce', str(trained), '--workdir', str(tmp_path / 'again'), '--json']) == 0
  printed = capsys.readouterr()
  summary = json.loads(printed.out.splitlines()[-1])
  assert summary['step'] == 20 and summary['reproduce'] == {
    'reproduced': True,
    'steps': 20,
    'losses': 11,
    'first_step_of_another_batch': None,
    'first_step_of_another_loss': None,
    'largest_difference_of_loss': 0.0,
  }
  lines = printed.err.splitlines()
  assert lines[-2:] == [
    'ledger: all 20 steps had the batches of the original',
    'loss: all 11 lines equal those of the original to the last bit',
  ]
  assert not any('jax' in line for line in lines if line.startswith('not as in the original'))


def test_a_run_made_again_with_another_seed(trained, tmp_path, capsys):
  reproduce = trained / 'checkpoints' / '7'
  result = mathqwen.train(reproduce=reproduce, workdir=tmp_path / 'again', settings={'train.seed': 1})['reproduce']
  assert not result['reproduced'] and (result['steps'], result['first_step_of_another_batch']) == (7, None)
  assert result['first_step_of_another_loss'] == 3 and 0 < result['largest_difference_of_loss'] < 1
  lines = capsys.readouterr().err.splitlines()
  assert 'not as in the original: settings: train.seed 0 -> 1' in lines
  assert any(line.startswith('loss: 3 of 3 lines differ; the first is loss of step 3, 6.') for line in lines)


def test_what_is_no_run_to_make_again(trained, tiny, fails, tmp_path):
  assert 'leave out one of them' in fails('train', tiny.config, '--reproduce', trained, '--workdir', tmp_path)
  assert 'are required: CONFIG' in fails('train', '--workdir', tmp_path)
  assert 'holds no checkpoint' in fails('train', '--reproduce', tmp_path, '--workdir', tmp_path / 'again')
  assert 'is not a checkpoint' in fails('train', '--reproduce', trained / 'checkpoints' / '8', '--workdir', tmp_path)
  (tmp_path / 'link').symlink_to(trained)
  for same in (trained, tmp_path / 'link', tmp_path / 'x' / '..' / 'link'):
    assert 'give another one' in fails('train', '--reproduce', trained, '--workdir', same)
  with pytest.raises(UserError, match='are required: CONFIG'):
    mathqwen.train(workdir=tmp_path)


@pytest.mark.parametrize(
  'item, old, new', [('config', '0.003', '0.002'), ('sessions', '"from_step": 0', '"from_step": 1')]
)
def test_a_changed_checkpoint_is_not_made_again(item, old, new, trained, fails, tmp_path):
  for number in ('7', '14'):
    shutil.copytree(trained / 'checkpoints' / number, tmp_path / 'run' / 'checkpoints' / number)
  step = tmp_path / 'run' / 'checkpoints' / '14'
  file = step / item / 'metadata'
  assert old in file.read_text()
  file.write_text(file.read_text().replace(old, new, 1))
  line = fails('train', '--reproduce', step, '--workdir', tmp_path / 'again')
  assert f'{step} is damaged ({item} differs from what was written' in line and not (tmp_path / 'again').exists()
  assert line.endswith(f'to continue from step 7, delete {step}')


def test_what_differs(trained):
  original = reproduce.find_original(str(trained / 'checkpoints'))
  assert original.step == 20 and original.workdir == str(trained)
  first = original.sessions[0]
  assert reproduce.differences(original, first)[-1:] in (
    ['code, versions, devices, settings and data are those of the original'],
    [f'the original ran commit {first["commit"]}: its changes to that commit are not known'],
  )
  now = first | {
    'commit': '0123',
    'platform': 'tpu',
    'packages': first['packages'] | {'jax': '9.9'},
    'data': first['data'] | {'examples': [151]},
  }
  continued = first | {'from_step': 7, 'settings': first['settings'] | {'train.micro_batches': 2}, 'commit': 'x'}
  original.sessions[1:] = [continued]
  lines = reproduce.differences(original, now)
  assert lines[:4] == [
    f'not as in the original: commit {first["commit"]} -> 0123',
    'not as in the original: platform cpu -> tpu',
    f'not as in the original: packages: jax {first["packages"]["jax"]} -> 9.9',
    'not as in the original: data: examples [152] -> [151]',
  ]
  assert lines[4] == (
    f'the original itself was continued at step 7 with commit {first["commit"]} -> x; settings: '
    'train.micro_batches 1 -> 2'
  )


def test_a_run_that_continues_elsewhere_says_so(trained, tmp_path, capsys):
  first = provenance.read_sessions(str(trained))[0]
  now = first | {
    'packages': first['packages'] | {'jax': '9.9'},
    'environment': first['environment'] | {'JAX_X': '1'},
    'settings': {},
  }
  older = {name: value for name, value in first.items() if name != 'packages'}
  for before, packages in ((first, f'packages: jax {first["packages"]["jax"]} -> 9.9; '), (older, '')):
    provenance.begin_session(str(tmp_path), before, is_new=True, primary=True)
    assert capsys.readouterr().err == ''
    assert provenance.begin_session(str(tmp_path), now, is_new=False, primary=True) == [before, now]
    assert capsys.readouterr().err == (
      f'not as in the session before: {packages}environment: JAX_X None -> 1; the numbers may differ from an '
      'undisturbed run\n'
    )
