"""`mathqwen.load` of a workdir and of its export; what is asked is what was trained on, the system prompt included."""

import dataclasses
import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

import mathqwen
from mathqwen import api, cli, config
from mathqwen.chat import chatml
from mathqwen.data.training_data import TrainingData
from mathqwen.errors import UserError
from mathqwen.evals import run
from mathqwen.inference import chat
from mathqwen.inference import model as models
from mathqwen.storage import checksums

ROOT = pathlib.Path(__file__).parent.parent
BRIEF = 'Answer with a number.'


@pytest.fixture(scope='module')
def model(trained):
  return mathqwen.load(str(trained), dtype='float32')


@pytest.fixture(scope='module')
def exported(model, tmp_path_factory):
  target = tmp_path_factory.mktemp('export') / 'hf'
  model.save_hf(str(target), 'float32')
  return target


@pytest.fixture
def briefed(trained, tmp_path):
  """A workdir as training with data.system_prompt leaves it."""
  workdir = tmp_path / 'briefed'
  shutil.copytree(trained, workdir)
  file = workdir / 'experiment.json'
  experiment = config.from_json(file.read_text(), str(file))
  text = config.to_json(config.override(experiment, [f'data.system_prompt={BRIEF}']))
  file.write_text(text)
  # The config inside the checkpoint is the one that counts, and its checksum is compared.
  step = workdir / 'checkpoints' / '20'
  (step / 'config' / checksums.JSON_FILE).write_text(text)
  record = checksums.read(step)
  record['items']['config'] = checksums.of_json(json.loads(text))
  written = json.dumps({'content': record, 'sha256': checksums.of_json(record)})
  (step / checksums.ITEM / checksums.JSON_FILE).write_text(written)
  return workdir


def test_a_workdir(model, trained):
  assert model.config.hidden_size == 32 and model.tokenizer.vocab_size == 1024
  assert model.name == f'{trained}/checkpoints/20'  # another checkpoint is another model
  assert mathqwen.load(str(trained / 'checkpoints' / '7'), dtype='float32').name == f'{trained}/checkpoints/7'
  assert mathqwen.load(f'{trained}/', dtype='float32').name == model.name
  assert (model.system_prompt, model.mesh) == ('', None)


def test_checkpoints_of_one_run_differ(model, trained):
  earlier = mathqwen.load(str(trained / 'checkpoints' / '7'), dtype='float32')
  tokens = [[1, 5, 9]]
  assert not np.allclose(earlier.logits(tokens), model.logits(tokens), atol=1e-3)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_logits(trained, dtype):
  model = mathqwen.load(str(trained), dtype=dtype)
  assert model.params['embed'].dtype == dtype
  tokens = np.arange(12, dtype=np.int32).reshape(2, 6)
  logits = model.logits(tokens)
  assert (logits.shape, logits.dtype) == ((2, 6, 1024), np.float32)
  changed = tokens.copy()
  changed[0, 5] = 700
  again = model.logits(changed)
  assert np.array_equal(again[0, :5], logits[0, :5]) and not np.array_equal(again[0, 5], logits[0, 5])
  # Two segments in a row are two rows.
  segments, positions = [[1, 1, 1, 2, 2, 2]], [[0, 1, 2, 0, 1, 2]]
  packed = model.logits(tokens[:1], segments, positions)
  np.testing.assert_allclose(packed[0, 3:], model.logits(tokens[:1, 3:])[0], atol=1e-5 if dtype == 'float32' else 2e-2)
  assert not np.array_equal(packed[0, 5], logits[0, 5])


def test_an_export_is_the_same_model(model, exported):
  again = mathqwen.load(exported, dtype='float32')
  assert (again.name, again.config) == (str(exported), model.config)
  tokens = np.arange(20, dtype=np.int32)[None]
  np.testing.assert_array_equal(again.logits(tokens), model.logits(tokens))
  assert 'system_prompt' not in json.loads((exported / 'config.json').read_text())


def test_generate(model):
  answers = model.generate(['11+3=', '12+4=', '13+5='], max_new_tokens=5)
  assert len(answers) == 3 and all(isinstance(answer, str) for answer in answers)
  assert model.generate(['13+5='], max_new_tokens=5) == answers[2:]
  with pytest.raises(UserError, match=r'write generate\(\[question\]\)'):
    model.generate('11+3=')


def test_generation_ends_where_a_stop_text_is_complete(model):
  prompts = [model.prompt([{'role': 'user', 'content': question}]) for question in ('11+3=', '12+4=')]
  whole = model.generate_ids(prompts, max_new_tokens=12)
  text = model.tokenizer.decode(whole[0])
  stop, done = text[0], {}
  cut = model.generate_ids(prompts, max_new_tokens=12, stop_texts=(stop, 'never'), on_done=done.__setitem__)
  assert cut == [done[0], done[1]]
  for long, short in zip(whole, cut, strict=True):
    assert short == long[: len(short)]
    held = stop in model.tokenizer.decode(short)
    assert held and stop not in model.tokenizer.decode(short[:-1]) or short == long
  assert len(cut[0]) < len(whole[0])
  assert model.generate_ids(prompts, max_new_tokens=12, stop_texts=('never',)) == whole


def test_default_length_is_what_the_model_has_room_for(model):
  assert model.new_tokens([[1] * 10, [1] * 40]) == 96 - 40
  assert model.new_tokens([[1] * 96]) == 1  # refused later, by name
  with pytest.raises(UserError, match='shorten the prompt'):
    model.generate(['1' * 200])
  assert all(isinstance(answer, str) for answer in model.generate(['11+3=']))


def test_check_needs_no_weights(trained):
  model, _ = models.open_model(str(trained))
  assert model.params is None
  model.check([[1, 2]])
  for arguments, message in [
    ({'temperature': -1.0}, 'temperature -1.0'),
    ({'temperature': float('nan')}, 'temperature nan'),
    ({'top_p': 0.0}, 'top_p 0.0'),
    ({'top_k': -1}, 'top_k -1'),
    ({'seed': -1}, 'seed is -1'),
    ({'max_new_tokens': 0}, 'max_new_tokens is 0'),
    ({'max_new_tokens': 95}, 'set max_new_tokens to at most 94'),
  ]:
    with pytest.raises(UserError, match=message):
      model.check([[1, 2]], **arguments)


def test_training_renders_what_is_asked(tiny, briefed):
  model, _ = models.open_model(str(briefed))
  cfg = dataclasses.replace(config.load(tiny.config).data, system_prompt=model.system_prompt, eval_examples=0)
  ids, mask = TrainingData(cfg, model.tokenizer).sources[0][0]
  question = json.loads(pathlib.Path(tiny.train).read_text().splitlines()[0])['query']
  assert ids[: mask.argmax()].tolist() == model.prompt([{'role': 'user', 'content': question}])


def test_the_system_prompt_of_training_is_asked_everywhere(tiny, briefed, tmp_path, monkeypatch):
  """In generation, chat and evaluation, of the checkpoint and of its export; another one may be given."""
  model = mathqwen.load(str(briefed), dtype='float32')
  assert model.system_prompt == BRIEF
  model.save_hf(str(tmp_path / 'hf'))
  assert json.loads((tmp_path / 'hf' / 'config.json').read_text())['system_prompt'] == BRIEF
  question = {'role': 'user', 'content': '11+3='}
  wanted = chatml.prompt([{'role': 'system', 'content': BRIEF}, question], model.tokenizer)
  for one in (model, mathqwen.load(tmp_path / 'hf', dtype='float32')):
    asked = []
    monkeypatch.setattr(type(one), 'generate_ids', lambda self, prompts, *_, **__: asked.extend(prompts) or [[5]])  # noqa: B023
    one.generate(['11+3='])
    one.generate(['11+3='], system_prompt='')
    assert asked == [wanted, chatml.prompt([question], one.tokenizer)]
    asked.clear()
    monkeypatch.setattr('builtins.input', _reading(['11+3=', '', '11+3=']))
    assert chat.interact(one, {}) == {'turns': 2}
    assert asked == [wanted, wanted]
    monkeypatch.undo()
    for prompt in (None, 'qwen-chat'):
      with run.prepare(one, 'arithmetic', run.Ask(tiny.data_dir, prompt=prompt)) as [(job, _)]:
        assert (job.prompts[0] == wanted) == (prompt is None)


def _reading(lines):
  left = iter(lines)

  def read(_):
    try:
      return next(left)
    except StopIteration:
      raise EOFError from None

  return read


def test_chat_keeps_the_conversation_until_an_empty_line(model, monkeypatch, capsys):
  asked = []
  monkeypatch.setattr(api.Model, 'generate_ids', lambda self, prompts, **_: asked.extend(prompts) or [[5, 6]])
  monkeypatch.setattr('builtins.input', _reading(['11+3=', '12+3=', '', '13+3=']))
  chat.interact(model, {})
  user = lambda text: {'role': 'user', 'content': text}
  said = {'role': 'assistant', 'content': model.tokenizer.decode([5, 6])}
  turns = [[user('11+3=')], [user('11+3='), said, user('12+3=')], [user('13+3=')]]
  assert asked == [chatml.prompt(messages, model.tokenizer) for messages in turns]


def test_chat_goes_on_when_a_question_is_too_long(model, monkeypatch, capsys):
  monkeypatch.setattr('builtins.input', _reading(['1' * 200, '11+3=']))
  assert chat.interact(model, {'max_new_tokens': 3}) == {'turns': 1}
  assert 'shorten the prompt (an empty line starts a new conversation)' in capsys.readouterr().err


def test_a_system_prompt_that_is_no_text(exported, tmp_path):
  broken = tmp_path / 'hf'
  broken.mkdir()
  values = json.loads((exported / 'config.json').read_text()) | {'system_prompt': 3}
  (broken / 'config.json').write_text(json.dumps(values))
  for name in ('model.safetensors', *(file.name for file in exported.glob('tokenizer*'))):
    (broken / name).write_bytes((exported / name).read_bytes())
  with pytest.raises(UserError, match='config.json: system_prompt is int: write text'):
    mathqwen.load(broken)


def test_a_tokenizer_larger_than_the_model(exported, tmp_path):
  broken = tmp_path / 'hf'
  broken.mkdir()
  for file in exported.iterdir():
    (broken / file.name).write_bytes(file.read_bytes())
  values = json.loads((broken / 'config.json').read_text()) | {'vocab_size': 900}
  (broken / 'config.json').write_text(json.dumps(values))
  tensors = safetensors.numpy.load_file(broken / 'model.safetensors')
  cut = {name: tensor[:900] if tensor.shape[0] == 1024 else tensor for name, tensor in tensors.items()}
  safetensors.numpy.save_file(cut, broken / 'model.safetensors', {'format': 'pt'})
  with pytest.raises(UserError, match='its tokenizer encodes text to ids up to 1019 and vocab_size is 900'):
    mathqwen.load(broken)


@pytest.mark.parametrize('path', ['none', 'file', 'empty'])
def test_paths_without_a_model(tmp_path, path):
  (tmp_path / 'file').write_text('x')
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UserError, match='give a Hugging Face directory, or the --workdir of a run'):
    mathqwen.load(tmp_path / path)


def test_unknown_dtype(trained):
  with pytest.raises(UserError, match="dtype 'float8' is not one of float32, bfloat16, float16"):
    mathqwen.load(str(trained), dtype='float8')


def test_importing_starts_nothing():
  code = 'import mathqwen, sys; print([m for m in ("jax", "flax", "orbax", "grain", "numpy") if m in sys.modules])'
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
  assert done.stdout == '[]\n'


def test_public_names(model):
  assert mathqwen.render is chatml.render
  assert mathqwen.load is api.load and mathqwen.UserError is UserError
  assert mathqwen.train is api.train and mathqwen.evaluate is api.evaluate
  assert mathqwen.load_tokenizer().vocab_size == 1024
  for name in mathqwen.__all__:
    assert getattr(mathqwen, name).__doc__
  assert {name for name in dir(mathqwen) if not name.startswith('_')} == {
    'UserError', 'evaluate', 'load', 'load_ipython_extension', 'load_tokenizer', 'render', 'train'
  }  # fmt: skip
  with pytest.raises(AttributeError, match='no_such_name'):
    mathqwen.no_such_name  # noqa: B018


@pytest.mark.parametrize(
  'tokens, message',
  [
    ([[1, 5000]], 'ids from 1 to 5000: the model knows 0 to 1023'),
    ([[-1, 3]], 'ids from -1 to 3'),
    ([1, 2], r'takes integers \[B, T\], not int64 \[2\]'),
    ([[0.5]], 'not float64'),
  ],
)
def test_what_logits_refuses(tokens, message, model):
  with pytest.raises(UserError, match=message):
    model.logits(tokens)


# --- train and evaluate, as the commands ---


def printed(capsys, *command):
  """The JSON of a command."""
  assert cli.main([*map(str, command), '--json']) == 0
  return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_train(tiny, tmp_path, capsys):
  """The same keys and the same loss, to the last bit."""
  settings = {'train.steps': 6, 'train.log_every': 2, 'optim.learning_rate': 1e-3}
  ours = mathqwen.train(tiny.config, tmp_path / 'python', init='random', settings=settings)
  words = [f'--set={name}={value}' for name, value in settings.items()]
  theirs = printed(capsys, 'train', tiny.config, '--workdir', tmp_path / 'shell', '--init', 'random', *words)
  assert ours.keys() == theirs.keys()
  for key in ('step', 'loss', 'eval_loss', 'tokens', 'packing_efficiency'):
    assert ours[key] == theirs[key]
  assert (ours['step'], ours['checkpoint']) == (6, f'{tmp_path}/python/checkpoints/6')
  resolved = [(tmp_path / name / 'experiment.json').read_text() for name in ('python', 'shell')]
  assert resolved[0] == resolved[1]
  # An Experiment; and a run that continues
  experiment = config.override(config.load(tiny.config), settings)
  assert mathqwen.train(experiment, str(tmp_path / 'python'))['loss'] == ours['loss']


def test_train_refuses_as_the_command_does(tiny, tmp_path, monkeypatch):
  for arguments, message in [
    (('dem', tmp_path / 'run'), "no config 'dem': known are"),
    ((tiny.config, tmp_path / 'run', None, {'train.step': 5}), "did you mean 'train.steps'?"),
    ((tiny.config, tmp_path / 'run', None, {'train.steps': '5'}), "train.steps is '5': it must be a whole number"),
    ((tiny.config, tmp_path / 'run', tmp_path / 'none'), f'no model at {tmp_path}/none'),
  ]:
    with pytest.raises(UserError, match=re.escape(message)):
      mathqwen.train(*arguments)
  assert not (tmp_path / 'run').exists()


def test_evaluate(model, trained, tiny, tmp_path, capsys):
  """Of a loaded model and of its path, as the command; records and scores included."""
  options = {'data_dir': tiny.data_dir, 'limit': 4, 'max_new_tokens': 5}
  loaded = mathqwen.evaluate(model, ['arithmetic'], out=tmp_path / 'loaded', **options)
  opened = mathqwen.evaluate(trained, 'arithmetic', out=tmp_path / 'opened', **options)
  words = ['--benchmarks', 'arithmetic', '--data-dir', tiny.data_dir, '--limit', '4', '--max-new-tokens', '5']
  theirs = printed(capsys, 'evaluate', trained, *words, '--out', tmp_path / 'shell')
  assert loaded.keys() == opened.keys() == theirs.keys()
  records = [(tmp_path / name / 'arithmetic' / 'records.jsonl').read_text() for name in ('loaded', 'opened', 'shell')]
  assert records[0] == records[1] == records[2]
  timed = ('seconds', 'tokens_per_second', 'time', 'date', 'command', 'peak_rss_bytes')
  for ours in (loaded, opened):
    scores, expected = ours['benchmarks']['arithmetic'], theirs['benchmarks']['arithmetic']
    assert scores.keys() == expected.keys()
    assert {k: v for k, v in scores.items() if k not in timed} == {k: v for k, v in expected.items() if k not in timed}


def test_evaluate_refuses_as_the_command_does(model, tiny, tmp_path):
  for arguments, message in [
    ({'benchmarks': 'gsm8'}, "unknown benchmark 'gsm8'; did you mean 'gsm8k'?"),
    ({'limit': 0}, 'limit is 0; it must be 1 or more'),
    ({'timeout': 3}, '--timeout is for openai:URL#MODEL only'),
    ({'dtype': 'bfloat16'}, "a loaded model keeps its own, 'float32'"),
    ({'model': 'openai:http://localhost:1#m', 'dtype': 'float32'}, '--dtype is decided by the server'),
    ({'out': tmp_path / 'file'}, 'file/arithmetic: Not a directory; a file stands where a directory is needed'),
  ]:
    (tmp_path / 'file').write_text('x')
    with pytest.raises(UserError, match=re.escape(message)):
      mathqwen.evaluate(**{'model': model, 'benchmarks': 'arithmetic', 'data_dir': tiny.data_dir, **arguments})
