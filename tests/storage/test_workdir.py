"""What stands beside the arrays: step 0, experiment.json, the tokenizer."""

import contextlib
import json
import os
import shutil
import signal

import pytest
from runs import assert_same_run, fails, logged, state_of

from mathqwen import config
from mathqwen.chat import chat_format
from mathqwen.cli import main
from mathqwen.errors import UserError
from mathqwen.observe import metrics
from mathqwen.storage import provenance
from mathqwen.storage import workdir as workdirs
from mathqwen.text.loading import load_tokenizer
from mathqwen.training import prepare, reproduce, stops

SHORT = ['--set', 'train.steps=3', '--set', 'optim.warmup_steps=1', '--set', 'train.log_every=1']


def test_a_stop_before_the_first_step(tiny, trained, tmp_path, monkeypatch, capsys):
  """While it compiles, and with a checkpoint of step 0: the weights of --init continue, not random ones.

  An attempt that saved nothing leaves no session: neither batch nor `--reproduce` follow it.
  """

  def train(name, *more):
    return main(['train', tiny.config, '--workdir', str(tmp_path / name), '--init', str(trained), *SHORT, *more])

  update = metrics.Progress.update

  def stopping(self, done, text):
    update(self, done, text)
    if text == 'compiling':
      os.kill(os.getpid(), signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(metrics.Progress, 'update', stopping)
    assert train('stopped', '--set', 'train.seed=5', '--init', 'random') == 75
  assert list((tmp_path / 'stopped' / 'checkpoints').iterdir()) == []
  assert len(provenance.read_sessions(str(tmp_path / 'stopped'))) == 1
  assert prepare._last_session(str(tmp_path / 'stopped')) is None
  with monkeypatch.context() as patch:
    patch.setattr(stops.Stops, 'asked', lambda self, step: True)
    assert train('stopped') == 75
  assert [path.name for path in (tmp_path / 'stopped' / 'checkpoints').iterdir()] == ['0']
  assert prepare._last_session(str(tmp_path / 'stopped'))['settings']['init'] == str(trained)
  assert train('stopped') == train('undisturbed') == 0
  assert f'continuing {tmp_path}/stopped at step 0' in capsys.readouterr().err
  losses = logged(tmp_path / 'stopped', 'loss')
  assert losses == logged(tmp_path / 'undisturbed', 'loss')
  assert losses[1] < logged(trained, 'loss')[3] - 0.5  # random weights have a higher one
  original = reproduce.find_original(str(tmp_path / 'stopped'))
  assert original.experiment.init == str(trained)
  assert [(session['from_step'], session['settings']['train.seed']) for session in original.sessions] == [(0, 0)] * 2


# --- experiment.json ---


@pytest.fixture
def untrained(monkeypatch):
  """Ends `train` where it would begin to: after all that may refuse it."""

  def fit(*_):
    raise InterruptedError

  monkeypatch.setattr(prepare.loop, 'fit', fit)


def train(tiny, workdir, *more):
  """Whether `train` would have begun."""
  try:
    main(['train', tiny.config, '--workdir', str(workdir), *more])
  except InterruptedError:
    return True
  return False


def test_the_config_in_the_checkpoint_counts(tiny, copied, capsys, untrained):
  workdir = copied(14)
  file = workdir / 'experiment.json'
  whole = file.read_text()
  other = whole.replace('"learning_rate": 0.003', '"learning_rate": 0.001')
  assert other != whole
  for content, difference in [(None, 'is missing'), (other, 'has another config'), ('{"mod', 'is damaged')]:
    file.unlink() if content is None else file.write_text(content)
    line = fails(capsys, 'train', tiny.config, '--workdir', workdir, '--set', 'optim.learning_rate=1e-3')
    assert 'holds a run of another config (optim.learning_rate 0.003 -> 0.001)' in line
    assert (file.read_text() if file.exists() else None) == content  # a run that is refused changes nothing
    assert train(tiny, workdir)
    said = capsys.readouterr().err.splitlines()
    assert said.count(f'{file} {difference}: the config in checkpoints/14 counts') == 1
    assert file.read_text() == whole


def test_the_newest_config_that_is_whole_counts(tiny, copied, capsys):
  """The line names the step that has it. The weights of the newest step are whole, and the run continues from them."""
  workdir = copied(14)
  (workdir / 'experiment.json').unlink()
  (workdir / 'checkpoints' / '14' / 'config' / 'metadata').write_text('{}')
  experiment = config.load(tiny.config)
  workdirs.check_claim(str(workdir), experiment)
  assert 'experiment.json is missing: the config in checkpoints/7 counts' in capsys.readouterr().err
  with pytest.raises(UserError, match='optim.learning_rate 0.003 -> 0.001'):
    workdirs.check_claim(str(workdir), config.override(experiment, ['optim.learning_rate=1e-3']))
  with pytest.raises(UserError, match='at step 14 it would jump'):
    workdirs.check_claim(str(workdir), config.override(experiment, ['train.steps=30']))


def test_a_model_without_experiment_json_is_read(copied, capsys):
  workdir = copied(7)
  (workdir / 'experiment.json').unlink()
  found = workdirs.find_checkpoint(str(workdir))
  assert found[1:] == (
    config.from_json(json.dumps(json.loads((workdir / 'checkpoints/7/config/metadata').read_text())), ''),
    7,
  )
  assert 'experiment.json is missing: the config in checkpoints/7 counts' in capsys.readouterr().err
  (workdir / 'experiment.json').write_text('{"mod')
  assert workdirs.find_checkpoint(str(workdir)) == found
  assert 'experiment.json is damaged: the config in checkpoints/7 counts' in capsys.readouterr().err


def test_a_refused_run_makes_no_experiment_json(tiny, tmp_path, capsys):
  workdir = tmp_path / 'run'
  fails(capsys, 'train', tiny.config, '--workdir', workdir, '--set', f'data.sources={tmp_path}/none.jsonl')
  assert not (workdir / 'experiment.json').exists()


def test_a_step_before_the_first_checkpoint(tiny, tmp_path):
  workdirs.claim(str(tmp_path / 'run'), config.load(tiny.config))
  with pytest.raises(UserError, match='holds no finished checkpoint yet'):
    workdirs.find_checkpoint(str(tmp_path / 'run' / 'checkpoints' / '5'))


# --- the tokenizer ---


@pytest.mark.parametrize('damage', ['emptied', 'changed', 'removed'])
def test_a_damaged_tokenizer(tiny, copied, capsys, untrained, damage):
  workdir = copied(7)
  file = max((workdir / 'tokenizer').iterdir(), key=lambda path: path.stat().st_size)
  whole = file.read_bytes()
  if damage == 'removed':
    file.unlink()
  else:
    file.write_bytes(b'' if damage == 'emptied' else whole[:-1] + b'?')
  for command in (['generate', workdir, '1+1='], ['convert', 'to-hf', workdir, workdir.parent / 'hf']):
    assert f'{file} is damaged or missing: copy it again' in fails(capsys, *command)
  assert train(tiny, workdir)
  assert f'{file} is damaged or missing, and is written again' in capsys.readouterr().err.splitlines()
  assert file.read_bytes() == whole


def test_the_tokenizer_of_an_attempt_that_saved_nothing_is_removed(tmp_path):
  """A file of it may be read before those of the run: a tokenizer.json before a qwen.tiktoken."""
  tokenizer = load_tokenizer(None)
  chat = chat_format.for_training('chatml', '', tokenizer)
  (tmp_path / 'run' / 'tokenizer').mkdir(parents=True)
  (tmp_path / 'run' / 'tokenizer' / 'qwen.tiktoken').write_text('of another tokenizer')
  for name in ('run', 'fresh'):
    workdirs.write_tokenizer(str(tmp_path / name), tokenizer, chat)
  ours, fresh = (sorted(file.name for file in (tmp_path / name / 'tokenizer').iterdir()) for name in ('run', 'fresh'))
  assert ours == fresh


# --- by the clock ---


def test_a_checkpoint_by_the_clock_continues_like_any_other(tiny, trained, tmp_path):
  """Written at every line of the metrics, and continued from one of them."""
  workdir = tmp_path / 'run'
  words = ['train', tiny.config, '--workdir', str(workdir), '--set', 'train.checkpoint_minutes=1e-9']
  assert main(words) == 0
  assert sorted(int(path.name) for path in (workdir / 'checkpoints').iterdir()) == [3, 6, 7, 9, 12, 14, 15, 18, 20]
  assert_same_run(workdir, trained)
  for later in (12, 14, 15, 18, 20):
    shutil.rmtree(workdir / 'checkpoints' / str(later))
  assert main(words) == 0
  assert_same_run(workdir, trained)
  assert state_of(workdir, 9)[1] != state_of(workdir, 12)[1]


@pytest.mark.parametrize('is_shared', [True, False])
def test_hosts_must_share_the_workdir(is_shared, tmp_path, monkeypatch):
  """Host 1 of 2. Host 0 has made its mark in the same folder, or in another one of the same name."""
  if is_shared:
    (tmp_path / 'mark').touch()
  monkeypatch.setattr(workdirs, '_SHARED_SECONDS', 0)
  monkeypatch.setattr(workdirs.hosts, 'share', lambda: (1, 2))
  monkeypatch.setattr(workdirs.hosts, 'gather', lambda mine: ['mark' if isinstance(mine, str) else True, mine])
  refused = pytest.raises(UserError, match=f'different folders at {tmp_path}: give all of them the same --workdir')
  with contextlib.nullcontext() if is_shared else refused:
    workdirs.check_shared(str(tmp_path))
