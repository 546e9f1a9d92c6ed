"""The prompt that is served is the prompt that was trained: exported runs of each kind, rendered by transformers."""

import functools
import json
import pathlib
import shutil
from unittest import mock

import pytest

from mathqwen import config as config_lib
from mathqwen import hf
from mathqwen.chat import chat_format, chatml, templates
from mathqwen.chat.chat_format import ChatFormat, save_tokenizer
from mathqwen.cli import main
from mathqwen.config import DataConfig
from mathqwen.conversion import check_template
from mathqwen.conversion.to_hf import convert_to_hf
from mathqwen.data.training_data import TrainingData
from mathqwen.errors import UserError
from mathqwen.inference.model import open_model
from mathqwen.storage import converted, workdir
from mathqwen.storage.source import open_source
from mathqwen.text.loading import load_tokenizer
from mathqwen.text.testing import tiny_bpe_tokenizer
from mathqwen.training.prepare import TrainingRun

pytestmark = pytest.mark.usefixtures('compiled_once')

# One in the manner of Qwen2.5-Math and SmolLM2, with a system turn of its own; one whose turns end with another token;
# and one with a date.
DEFAULT_SYSTEM = (
  "{%- if messages[0]['role'] != 'system' %}{{- '<|im_start|>system\\nReason step by step.<|im_end|>\\n' }}{%- endif %}"
  "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
  "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
PLAIN = (
  "\n  {%- for m in messages %}\n    {{- '<|' + m.role + '|> ' + m.content | trim + '<|endoftext|>' }}\n"
  '  {%- endfor %}\n'
  "{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
DATED = "{{ 'Today is ' + strftime_now('%Y-%m-%d') + '. ' }}" + PLAIN.strip()
QUESTION = [{'role': 'user', 'content': '11+3='}]
CHATS = [messages for messages in check_template.SAMPLE if not check_template._begins_with_space(messages)]


@pytest.fixture(scope='module')
def base(tmp_path_factory, tiny_config, random_params):
  """make(template, eos) -> a published model: its tokenizer_config.json has the template; answers end at `eos`."""
  folder = tmp_path_factory.mktemp('base')
  cfg = tiny_config('qwen2', vocab_size=411, num_hidden_layers=1, max_position_embeddings=96)
  tokenizer = tiny_bpe_tokenizer()
  hf.save(str(folder / 'plain'), random_params(cfg), cfg, tokenizer, 'float32')
  made = {}

  def make(template, eos='<|endoftext|>'):
    key = (template, eos)
    if key not in made:
      made[key] = folder / f'model{len(made)}'
      shutil.copytree(folder / 'plain', made[key])
      (made[key] / 'chat_template.jinja').unlink()
      (made[key] / 'generation_config.json').write_text(json.dumps({'eos_token_id': tokenizer.special[eos]}))
      change(made[key] / 'config.json', eos_token_id=tokenizer.special[eos])
      changes = {'eos_token': eos} | ({'chat_template': template} if template else {})
      change(made[key] / 'tokenizer_config.json', **changes)
    return made[key]

  return make


def change(file, **values):
  file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture(scope='module')
def trained_from(base, tiny, tmp_path_factory):
  """make(template, *settings) -> the workdir of a run from a base model with this template, at its first step.

  Nothing is computed: it is what training makes of the settings and of `init`, and what it saves.
  """
  made = {}

  def make(template, *settings):
    key = (template, settings)
    if key not in made:
      made[key] = tmp_path_factory.mktemp('run') / 'run'
      init = str(base(template))
      run = TrainingRun.prepare(config_lib.override(config_lib.load(tiny.config), [f'init={init}', *settings]))
      made[key].mkdir()
      # As a run keeps it, with the template that it is trained with.
      with mock.patch.object(converted, 'save_tokenizer', functools.partial(save_tokenizer, chat=run.chat)):
        converted.write_model(made[key], open_source(init).weights, run.experiment, run.tokenizer)
      (made[key] / 'checkpoints' / '0').rename(made[key] / 'checkpoints' / '1')
    return made[key]

  return make


def exported(workdir, folder):
  """(the export, transformers' tokenizer of it)."""
  transformers = pytest.importorskip('transformers')
  convert_to_hf(str(workdir), str(folder), compare=False)
  return folder, transformers.AutoTokenizer.from_pretrained(folder)


def ids(tokenizer, messages, ask=False):
  return tokenizer.apply_chat_template(messages, add_generation_prompt=ask, return_dict=True)['input_ids']


def trained_prompt(tiny, workdir):
  """The ids before the first loss token of the first example, as the run was trained."""
  run = open_source(str(workdir))
  data = TrainingData(run.experiment.data, run.tokenizer, chat=run.chat())
  encoded, mask = data.sources[0][0]
  question = json.loads(pathlib.Path(tiny.train).read_text().splitlines()[0])['query']
  return encoded[: mask.argmax()].tolist(), [{'role': 'user', 'content': question}]


CASES = {
  'ChatML, of a base with a default system turn': (DEFAULT_SYSTEM, (), ''),
  'ChatML with a system turn': (None, ('data.system_prompt=Say "so"\n{%- if %}',), 'Say "so"\n{%- if %}'),
  'own, with a default system turn': (DEFAULT_SYSTEM, ('data.template=own',), 'Reason step by step.'),
  'own, with a system turn of the setting': (PLAIN, ('data.template=own', 'data.system_prompt=好的 😀'), '好的 😀'),
}


@pytest.mark.parametrize('case', CASES)
def test_transformers_renders_what_was_trained(case, tiny, trained_from, tmp_path):
  template, settings, system = CASES[case]
  run = trained_from(template, *settings)
  out, theirs = exported(run, tmp_path / 'out')

  # What was trained, what transformers serves, and what we ask of the run and of the export.
  prompt, question = trained_prompt(tiny, run)
  assert ids(theirs, question, ask=True)[: len(prompt)] == prompt
  model, again = (open_model(str(path))[0] for path in (run, out))
  for messages in CHATS:
    asked = model.prompt(messages[:-1])
    assert ids(theirs, messages[:-1], ask=True) == asked == again.prompt(messages[:-1])
    whole, mask = model.chat.template.render_batch([model.chat.conversation(messages)], model.tokenizer)[0]
    assert ids(theirs, messages) == whole and sum(mask) > 1
  assert model.chat.system_turn(model.tokenizer) == again.chat.system_turn(again.tokenizer) == system
  assert model.chat.record()['template_sha256'] == again.chat.record()['template_sha256']

  # No other place has another template, or another end of a turn.
  assert 'chat_template' not in json.loads((out / 'tokenizer_config.json').read_text())
  assert [path.name for path in out.glob('chat_template*')] == ['chat_template.jinja']
  end = '<|endoftext|>' if template == PLAIN else '<|im_end|>'
  generation = json.loads((out / 'generation_config.json').read_text())
  assert theirs.eos_token == end and generation['eos_token_id'][0] == theirs.eos_token_id
  assert json.loads((out / 'config.json').read_text())['eos_token_id'] == theirs.eos_token_id
  assert set(generation['eos_token_id']) == set(model.chat.stop_ids(model.tokenizer))
  card = (out / 'README.md').read_text().split('## Prompt')[1].split('## Training')[0]
  assert ('ChatML' in card) == ('data.template=own' not in settings) and f'Answers end at `{end}`' in card
  assert system.split('\n')[0] in card if system else 'without a system turn' in card


def test_generation_marks_stay(trained_from, tmp_path):
  _, theirs = exported(trained_from(None, 'data.system_prompt=Say "so"\n{%- if %}'), tmp_path / 'out')
  rendered = theirs.apply_chat_template(CHATS[2], return_dict=True, return_assistant_tokens_mask=True)
  ours = ChatFormat(system_prompt='Say "so"\n{%- if %}')
  ids_, mask = chatml.render(ours.conversation(CHATS[2]), tiny_bpe_tokenizer())
  assert (rendered['input_ids'], rendered['assistant_masks']) == (ids_, mask)


def test_a_model_that_was_not_trained_here_keeps_its_own(base, tmp_path):
  for number, template in enumerate((DEFAULT_SYSTEM, PLAIN)):
    source = base(template)
    assert main(['convert', 'from-hf', str(source), str(tmp_path / f'ours{number}'), '--no-check']) == 0
    out, theirs = exported(tmp_path / f'ours{number}', tmp_path / f'out{number}')
    assert theirs.chat_template == template and theirs.eos_token == '<|endoftext|>'
    before, after = ((path / 'tokenizer_config.json').read_bytes() for path in (source, out))
    assert before == after and not (out / 'chat_template.jinja').exists()
    assert 'The chat template of its source, unchanged.' in (out / 'README.md').read_text()


def test_who_is_asked_in_which_template(base, trained_from, tmp_path, capsys):
  """A chat model in its own, a base model in ChatML even where it has a template, a run as it was trained."""
  cases = {
    base(DEFAULT_SYSTEM, '<|im_end|>'): 'template own, the template\'s own system turn "Reason step by step."',
    base(DEFAULT_SYSTEM): 'template chatml, no system turn',
    base(None): 'template chatml, no system turn',
    base(PLAIN): 'template own, no system turn',
    trained_from(DEFAULT_SYSTEM): 'template chatml, no system turn',
  }
  for path, line in cases.items():
    model, _ = open_model(str(path))
    assert model.chat.describe(model.tokenizer) == line, path
  path = base(DEFAULT_SYSTEM, '<|im_end|>')
  (tmp_path / 'mine.jinja').write_text(PLAIN)
  model, _ = open_model(str(path))
  mine = f'{tmp_path}/mine.jinja'
  for template, system, line in (
    ('chatml', None, 'template chatml, no system turn'),
    (None, 'Be brief.', 'template own, system turn "Be brief."'),
    (mine, 'x', f'template {mine}, system turn "x"'),
  ):
    assert model.asked_with(template, system).chat.describe(model.tokenizer) == line
  command = ['generate', str(path), '1+1=', '--max-new-tokens', '2', '--json', '--template', mine, '--system', 'x']
  assert main(command) == 0
  printed = capsys.readouterr()
  assert line in printed.err.splitlines()
  answer = json.loads(printed.out.splitlines()[-1])
  assert (answer['template'], answer['system_prompt']) == (mine, 'x')


def test_a_template_that_cannot_be_used(base, fails):
  """It is no obstacle to logits: `load` takes the model, and what makes a prompt of it names the template."""
  path = base('{% if %}', '<|im_end|>')
  refused = fails('generate', path, '1')
  assert refused.startswith('own: not a chat template that can be used')
  model, _ = open_model(str(path))
  with pytest.raises(UserError) as error:
    model.chat.prompt(QUESTION, model.tokenizer)
  assert str(error.value) == refused
  with pytest.raises(UserError, match='not a chat template that can be used'):
    model.asked_with(system='Be brief.')
  assert model.asked_with('chatml').chat.prompt(QUESTION, model.tokenizer) == chatml.prompt(QUESTION, model.tokenizer)


def test_a_base_model_without_the_tokens_of_chatml(tmp_path):
  """Llama 3's stops at <|end_of_text|>, its template ends turns with another token, and ChatML cannot ask it."""
  tokenizer = tiny_bpe_tokenizer()
  for file, content in tokenizer.files_in().items():
    (tmp_path / file).write_bytes(content.replace(b'<|im_start|>', b'<|begin|>').replace(b'<|im_end|>', b'<|eot|>'))
  template = "{% for m in messages %}{{ '<|begin|>' + m.role + m.content + '<|eot|>' }}{% endfor %}{{ '<|begin|>' }}"
  change(tmp_path / 'tokenizer_config.json', chat_template=template, eos_token='<|endoftext|>')
  assert chat_format.published('', load_tokenizer(tmp_path)).template.source == template


def test_only_one_may_decide_the_system_turn(base, tiny, tmp_path, fails):
  command = ['train', tiny.config, '--init', base(DEFAULT_SYSTEM), '--workdir', tmp_path / 'run']
  message = fails(*command, '--set', 'data.template=own', '--set', 'data.system_prompt=Be brief.')
  assert message.startswith('data.system_prompt is set, and data.template own has a system turn of its own ("Reason')
  (tmp_path / 'deaf.jinja').write_text("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}")
  settings = ['--set', f'data.template={tmp_path}/deaf.jinja', '--set', 'data.system_prompt=Be brief.']
  assert 'deaf.jinja renders no system turn: leave data.system_prompt out' in fails(*command, *settings)
  message = fails('generate', base(None), '1', '--template', tmp_path / 'deaf.jinja', '--system', 'Be brief.')
  assert message.endswith('deaf.jinja renders no system turn: leave --system out, or take another')
  assert not (tmp_path / 'run').exists()


def test_a_run_keeps_its_template(tiny, tmp_path, capsys):
  """A file that changes or is gone changes nothing, another setting is refused, and the day of a date stays."""
  file = tmp_path / 'mine.jinja'
  file.write_text(DATED)
  run = tmp_path / 'run'
  assert main(['train', tiny.config, '--workdir', str(run), '--set', f'data.template={file}']) == 0
  assert f'trained with template {file}, no system turn' in capsys.readouterr().err
  saved = run / 'tokenizer' / 'chat_template.jinja'
  kept = saved.read_text()
  assert 'strftime_now' not in kept and "{{ 'Today is ' + \"20" in kept

  experiment = config_lib.override(config_lib.load(tiny.config), [f'data.template={file}'])
  for text, reported in ((PLAIN, True), (DATED, False), (None, False)):
    file.unlink() if text is None else file.write_text(text)
    capsys.readouterr()
    assert TrainingRun.prepare(experiment, workdir=str(run)).chat.jinja() == kept
    line = f'data.template={file} is another text now: the run keeps the one that it began with'
    assert (line in capsys.readouterr().err) == reported
  assert open_source(str(run)).chat().jinja() == kept
  other = config_lib.override(experiment, ['data.template=own'])
  with pytest.raises(UserError, match=f"holds a run of another config .data.template '{file}' -> 'own'"):
    workdir.check_claim(str(run), other)
  saved.write_text(kept + ' ')
  file.write_text(PLAIN)
  with pytest.raises(
    UserError, match='chat_template.jinja is damaged or missing, and data.template=.* is another text'
  ):
    TrainingRun.prepare(experiment, workdir=str(run))
  file.write_text(kept)
  assert TrainingRun.prepare(experiment, workdir=str(run)).chat.jinja() == kept


def test_a_template_that_a_server_renders_otherwise_ends_the_export(trained_from, tmp_path, monkeypatch, fails):
  run = trained_from(None)
  real = ChatFormat.jinja
  for other, words in (
    (lambda text: text.replace('<|im_end|>', '<|endoftext|>'), 'a server would read'),
    (lambda text: text + '{{ raise_exception("no") }}', 'a server refuses it'),
  ):
    monkeypatch.setattr(ChatFormat, 'jinja', lambda self: other(real(self)))  # noqa: B023
    assert words in fails('convert', 'to-hf', run, tmp_path / 'out', '--no-check')
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()


def test_what_is_inherent_passes_and_nothing_else():
  """An answer of ChatML that begins with white space: other ids, the same text."""
  tokenizer = tiny_bpe_tokenizer()
  spaced = next(messages for messages in check_template.SAMPLE if check_template._begins_with_space(messages))
  chat = ChatFormat()
  compare = check_template._compare
  assert compare(tokenizer, chat, tokenizer, chat.jinja(), spaced, ask=False)
  own = ChatFormat(templates.from_source(PLAIN, tokenizer))
  assert compare(tokenizer, own, tokenizer, PLAIN, spaced, ask=False)
  with pytest.raises(UserError, match='a server would read'):
    compare(tokenizer, chat, tokenizer, chat.jinja().replace("+ '<", "+ ' <"), spaced, ask=False)


def test_a_prompt_that_ends_unlike_the_training_is_told(tmp_path):
  """As in DeepSeek-R1's template: prompts end with <think>, and a solution has none."""
  (tmp_path / 'think.jinja').write_text(PLAIN.replace("'<|assistant|>' }}", "'<|assistant|> <think>' }}"))
  for answer, told in (('2', True), ('<think>one</think>2', False)):
    (tmp_path / 'a.jsonl').write_text(json.dumps({'question': '1+1=', 'answer': answer}) + '\n')
    cfg = DataConfig(
      sources=(f'{tmp_path}/a.jsonl',), template=f'{tmp_path}/think.jinja', seq_len=96, eval_examples=0, batch_size=1
    )
    lines = TrainingData(cfg, tiny_bpe_tokenizer()).describe()
    assert any(line.startswith('the template ends each prompt with "<think>", and') for line in lines) == told


def test_default_system_turns():
  tokenizer = tiny_bpe_tokenizer()
  for text, system, renders in (
    (DEFAULT_SYSTEM, 'Reason step by step.', True),
    (PLAIN, '', True),
    (chatml.CHAT_TEMPLATE, '', True),
    ("{{ 'A chat. ' if messages[0].role != 'system' }}{% for m in messages %}{{ m.content + ' ' }}{% endfor %}",
     'A chat.', True),
    ("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}", '', False),
  ):  # fmt: skip
    template = templates.from_source(text, tokenizer)
    assert chat_format.default_system(template, tokenizer) == system
    assert chat_format.renders_system(template, tokenizer) == renders


def test_a_resolved_config_without_a_template_is_of_an_older_version(tiny):
  value = json.loads(config_lib.to_json(config_lib.load(tiny.config)))
  del value['data']['template']
  assert config_lib.from_json(json.dumps(value), 'x').data.template == 'chatml'
