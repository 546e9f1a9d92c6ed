"""Models named by their name on the Hugging Face hub."""

import fnmatch
import shutil
import sys

import huggingface_hub
import pytest

import mathqwen
from mathqwen import cli, hf
from mathqwen.errors import UserError
from mathqwen.files import hub


def test_names_of_the_hub(exported, tmp_path, monkeypatch, fails):
  asked = []

  def give(name, allow_patterns):
    asked.append((name, allow_patterns))
    return str(exported)

  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(huggingface_hub, 'snapshot_download', give)
  (tmp_path / 'runs').mkdir()
  assert hub.name_of('runs/gsm8k') is None  # misspelt, most likely
  assert hub.name_of('Qwen/Qwen2.5-0.5B') == hub.name_of('hf://Qwen/Qwen2.5-0.5B') == 'Qwen/Qwen2.5-0.5B'
  assert hub.name_of('/Qwen/x') is hub.name_of('../x') is hub.name_of('a/b/c') is hub.name_of('model') is None
  for name in ('Qwen/Qwen2.5-0.5B', 'hf://Qwen/Qwen2.5-0.5B'):
    assert mathqwen.load(name).config == hf.read_config(str(exported))
  assert [name for name, _ in asked] == ['Qwen/Qwen2.5-0.5B'] * 2
  assert not any('.py' in pattern or '.bin' in pattern for pattern in asked[0][1])
  assert fails('generate', 'hf://Qwen', '1+1=').endswith('write hf://ORGANISATION/NAME')


def test_files_of_torch_are_fetched_where_there_are_no_safetensors(exported, tmp_path, monkeypatch):
  asked = []

  def give(name, allow_patterns):
    asked.append(allow_patterns)
    return str(tmp_path if name.endswith('Old') else exported)

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', give)
  hub.fetch('Qwen/New')
  assert len(asked) == 1
  hub.fetch('Qwen/Old')
  assert len(asked) == 3 and {'pytorch_model*.bin', *hub.FILES} <= set(asked[2])
  assert not any(
    fnmatch.fnmatch(file, pattern) for file in ('optimizer.bin', 'training_args.bin') for pattern in asked[2]
  )


def test_a_name_with_a_revision(exported, monkeypatch, tmp_path):
  asked = []

  def give(name, allow_patterns, revision):
    asked.append((name, revision))
    return str(exported)

  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(huggingface_hub, 'snapshot_download', give)
  for name in ('Qwen/Qwen2.5-0.5B@v1.0', 'hf://Qwen/Qwen2.5-0.5B@refs/pr/3'):
    mathqwen.load(name)
  assert asked == [('Qwen/Qwen2.5-0.5B', 'v1.0'), ('Qwen/Qwen2.5-0.5B', 'refs/pr/3')]
  with pytest.raises(UserError, match='@REVISION may follow'):
    hub.name_of('hf://Qwen/Qwen2.5-0.5B@')


def test_a_hub_that_does_not_answer(monkeypatch, tmp_path, fails):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
  message = fails('generate', 'Qwen/Qwen2.5-0.5B', '1+1=')
  assert message.startswith('no directory Qwen/Qwen2.5-0.5B, and the Hugging Face hub did not give it')
  assert 'An error happened' not in message


def test_without_the_hub_library(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(UserError, match=r"pip install 'mathqwen\[hf\]' first"):
    mathqwen.load('Qwen/Qwen2.5-0.5B')


def test_a_dry_run_takes_a_model_that_is_in_the_cache(exported, tiny, monkeypatch, tmp_path, capsys):
  """From the real layout of the hub's cache, and without asking the hub."""
  monkeypatch.chdir(tmp_path)
  model = tmp_path / 'cache' / 'models--Qwen--Tiny'
  shutil.copytree(exported, model / 'snapshots' / 'abc')
  (model / 'refs').mkdir()
  (model / 'refs' / 'main').write_text('abc')
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
  assert hub.cached('Qwen/Tiny') == str(model / 'snapshots' / 'abc') and hub.cached('Qwen/Other') is None
  assert cli.main(['train', tiny.config, '--dry-run', '--init', 'Qwen/Tiny', '--set', 'data.seq_len=96']) == 0
  printed = capsys.readouterr()
  assert 'is not on this machine' not in printed.err and '"init": "Qwen/Tiny"' in printed.out
  assert f'"hidden_size": {hf.read_config(str(exported)).hidden_size}' in printed.out
  assert cli.main(['train', tiny.config, '--dry-run', '--init', 'Qwen/Other']) == 0
  assert 'Qwen/Other is not on this machine' in capsys.readouterr().err
