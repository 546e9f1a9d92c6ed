"""What a notebook does on Colab, on Kaggle and elsewhere: the token, where work is kept, what is fetched."""

import os
import sys
import types

import pytest
from IPython.core.error import UsageError

from mathqwen import notebook
from mathqwen.errors import UserError
from mathqwen.files import hub


def module(monkeypatch, name, **members):
  """Puts a module in the place of one that only Colab or Kaggle has."""
  made = types.ModuleType(name)
  made.__spec__ = types.SimpleNamespace(name=name)
  made.__path__ = []
  vars(made).update(members)
  monkeypatch.setitem(sys.modules, name, made)
  return made


@pytest.fixture
def colab(monkeypatch):
  """Colab's own modules: what was called, in `colab.calls`."""
  calls = []
  userdata = types.SimpleNamespace(get=lambda name: calls.append(name) or 'hf_secret')
  drive = types.SimpleNamespace(mount=calls.append)
  auth = types.SimpleNamespace(authenticate_user=lambda: calls.append('auth'))
  made = module(monkeypatch, 'google.colab', userdata=userdata, drive=drive, auth=auth)
  made.calls = calls
  return made


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
  monkeypatch.delenv('HF_TOKEN', raising=False)


def test_the_token_of_colab(colab, capsys):
  notebook.use_token()
  assert os.environ.pop('HF_TOKEN') == 'hf_secret' and colab.calls == ['HF_TOKEN']
  said = capsys.readouterr().out
  assert said == "HF_TOKEN: from Colab's secrets\n" and 'hf_secret' not in said


def test_a_token_that_was_not_granted(colab, capsys):
  class NotebookAccessError(Exception):
    pass

  def refuse(name):
    raise NotebookAccessError('hf_secret')

  colab.userdata.get = refuse
  notebook.use_token()
  assert 'HF_TOKEN' not in os.environ
  said = capsys.readouterr().out
  assert said.splitlines() == [
    "HF_TOKEN: not taken from Colab's secrets (NotebookAccessError)",
    'no HF_TOKEN: models that are open to all need none',
  ]


def test_the_token_of_kaggle(monkeypatch, capsys):
  client = types.SimpleNamespace(get_secret=lambda name: f'kaggle {name}')
  module(monkeypatch, 'kaggle_secrets', UserSecretsClient=lambda: client)
  notebook.use_token()
  assert os.environ.pop('HF_TOKEN') == 'kaggle HF_TOKEN'
  assert capsys.readouterr().out == "HF_TOKEN: from Kaggle's secrets\n"


def test_the_token_of_the_environment_comes_first(colab, monkeypatch):
  monkeypatch.setenv('HF_TOKEN', 'mine')
  notebook.use_token()
  assert os.environ['HF_TOKEN'] == 'mine' and not colab.calls


def test_work_on_a_drive(colab, capsys):
  assert notebook.keep('drive', 'runs/a') == '/content/drive/MyDrive/mathqwen/runs/a'
  assert colab.calls == ['/content/drive'] and 'which keeps it' in capsys.readouterr().out


def test_work_in_a_bucket(colab, monkeypatch):
  module(monkeypatch, 'gcsfs')
  assert notebook.keep('gs://b/work/', 'runs/a') == 'gs://b/work/runs/a'
  assert colab.calls == ['auth']


def test_work_on_this_machine(capsys, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  assert notebook.keep('', 'runs/a') == 'runs/a'
  assert capsys.readouterr().out.startswith(f'{tmp_path}/runs/a: on the disk of this machine. A hosted session deletes')
  assert notebook.keep('', '/kaggle/working/runs') == '/kaggle/working/runs'
  assert 'only in a version that you save' in capsys.readouterr().out


@pytest.mark.parametrize(
  'where, message', [('drive', 'is for Colab'), ('s3://b', "write 'drive', 'gs://BUCKET/FOLDER'")]
)
def test_places_that_are_not_here(where, message):
  with pytest.raises(UsageError, match=message):
    notebook.keep(where, 'runs')


def test_needs(monkeypatch, capsys, tmp_path):
  asked = []
  monkeypatch.setattr(notebook, 'run', asked.append)
  monkeypatch.setattr(hub, 'fetch', lambda name: f'cache/{name}')
  notebook.fetch(['Qwen/Qwen3-0.6B', 'gsm8k', str(tmp_path), 'runs'])
  assert asked == ['data prepare gsm8k']
  assert capsys.readouterr().out == 'Qwen/Qwen3-0.6B: cache/Qwen/Qwen3-0.6B\n'

  def fail(name):
    raise UserError('no network')

  monkeypatch.setattr(hub, 'fetch', fail)
  with pytest.raises(UsageError, match='no network'):
    notebook.fetch(['Qwen/Qwen3-0.6B'])


def test_a_notebook_without_a_tpu_says_where_to_choose_one(monkeypatch, capsys):
  from mathqwen.hardware import devices

  notebook.start('cpu')
  assert capsys.readouterr().out.startswith('CPU (')
  monkeypatch.setattr(devices.Accelerators, 'tpu', lambda self: None)
  with pytest.raises(UsageError, match='this machine has no TPU .* Colab: Runtime > Change runtime type'):
    notebook.start('tpu')
