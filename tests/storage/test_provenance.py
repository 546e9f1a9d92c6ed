"""What made a run: its sessions in the workdir and in each checkpoint."""

import json
import shutil

import mathqwen
from mathqwen import cli
from mathqwen.storage import provenance


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
