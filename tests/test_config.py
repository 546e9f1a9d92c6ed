"""Settings: known, read, typed, within bounds, and back from JSON as they were; the recipe to the letter."""

import ast
import dataclasses
import pathlib

import pytest

from mathqwen import config, config_files
from mathqwen.adapter_config import AdapterConfig
from mathqwen.config import DataConfig, Experiment, MeshConfig, OptimConfig, TrainConfig, load, override
from mathqwen.errors import UserError
from mathqwen.model.config import PRESETS, ModelConfig, RopeScaling

PACKAGE = pathlib.Path(config.__file__).parent
CONFIGS = PACKAGE.parent / 'configs'


@pytest.fixture
def base():
  model = ModelConfig(
    vocab_size=1024,
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=256,
  )
  data, optim = DataConfig(seq_len=128, batch_size=16), OptimConfig(learning_rate=3e-3, warmup_steps=100)
  return Experiment(model=model, data=data, optim=optim, train=TrainConfig(steps=1000))


def test_overrides_are_typed_by_the_field(base):
  settings = ['train.steps=2_000', 'optim.learning_rate=1e-3', 'model.qk_norm=true', 'data.sources=a.jsonl, b.jsonl']
  settings += ['data.weights=1,2.5', 'data.data_dir=None', 'init=some/dir', 'data.system_prompt=a=b, c']
  now = override(base, [s for s in settings if not s.startswith(('init', 'model'))])
  assert (now.train.steps, now.optim.learning_rate) == (2000, 0.001)
  assert (now.data.sources, now.data.weights) == (('a.jsonl', 'b.jsonl'), (1.0, 2.5))
  assert now.data.data_dir is None and now.data.system_prompt == 'a=b, c'
  assert override(base, ['model.qk_norm=true']).model.qk_norm is True
  assert override(base, ['init=some/dir']).init == 'some/dir'
  assert base.train.steps == 1000  # the one given is as it was


@pytest.mark.parametrize(
  'settings, message',
  [
    (['train.step=5'], "--set train.step: there is no such setting; did you mean 'train.steps'?"),
    (['optim.lr_schedule=linear'], "there is no such setting; did you mean 'optim.schedule'?"),
    (['optim=5'], '--set optim: there is no such setting'),
    (['train.steps'], '--set train.steps: write it as name=value, for example --set train.steps=100'),
    (['train.steps=1e3'], '--set train.steps=1e3: it must be a whole number'),
    (['train.steps='], '--set train.steps=: it must be a whole number'),
    (['optim.eps=small'], '--set optim.eps=small: it must be a number'),
    (['model.qk_norm=1'], '--set model.qk_norm=1: write true or false'),
    (['data.weights=1,x'], '--set data.weights=x: it must be a number'),
    (['optim.schedule=cosin'], "optim.schedule is 'cosin': it must be one of cosine, linear, constant; did you mean"),
    (['train.remat=some'], "train.remat is 'some': it must be one of none, dots, gate, mlp, full, nested"),
    (['train.compute_dtype=float16'], "train.compute_dtype is 'float16': it must be one of float32, bfloat16"),
    (['train.steps=0'], 'train.steps is 0: it must be at least 1'),
    (['optim.learning_rate=nan'], 'optim.learning_rate is nan: it must be above 0 and finite'),
    (['optim.learning_rate=inf'], 'optim.learning_rate is inf: it must be above 0 and finite'),
    (['optim.clip_norm=0'], 'optim.clip_norm is 0.0: it must be above 0'),
    (['optim.beta2=1'], 'optim.beta2 is 1.0: it must be at least 0 and below 1'),
    (['optim.eps=0'], 'optim.eps is 0.0: it must be above 0 and finite'),
    (['optim.weight_decay=-1'], 'optim.weight_decay is -1.0: it must be at least 0'),
    (['optim.final_ratio=2'], 'optim.final_ratio is 2.0: it must be from 0 to 1'),
    (['train.dropout=1'], 'train.dropout is 1.0: it must be at least 0 and below 1'),
    (['data.seed=-1'], 'data.seed is -1: it must be from 0'),
    (['train.seed=4294967296'], 'train.seed is 4294967296: it must be from 0'),
    (['data.sources='], 'data.sources is empty'),
    (['data.weights=1,2'], 'data.weights has 2 entries for 1 data.sources'),
    (['data.epochs=1,2'], 'data.epochs has 2 entries for 1 data.sources'),
    (['data.epochs=0'], 'data.epochs is (0.0,): each must be above 0 and finite; leave a source out'),
    (['data.epochs=2', 'data.weights=1'], 'data.weights and data.epochs both say how much of each source'),
    (
      ['data.weights=nan'],
      'data.weights is (nan,): each must be above 0 and finite; leave a source out of data.sources instead',
    ),
    (
      ['data.batch_size=6', 'train.micro_batches=4'],
      'not divisible by train.micro_batches 4: set train.micro_batches=3',
    ),
    (['optim.warmup_steps=1000'], 'leaves no step to decay in train.steps 1000: set optim.warmup_steps=100'),
    (['model.head_dim=15'], 'model.head_dim 15 is odd'),
    (['model.num_key_value_heads=3'], 'is not a multiple of'),
  ],
)
def test_refused(base, settings, message):
  with pytest.raises(UserError) as error:
    override(base, settings)
  assert message in str(error.value)


@pytest.mark.parametrize(
  'settings, message',
  [
    (['optim.schedule=constant', 'optim.final_ratio=0.5'], "nearest setting that is read is 'optim.schedule'"),
    (['data.eval_examples=0', 'train.eval_every=5'], "nearest setting that is read is 'data.eval_examples'"),
    (['init=dir', 'model.hidden_size=256'], 'nothing reads it, because the model comes from dir'),
    (['train.eval_every=5000'], 'is never reached in train.steps 1000'),
    (['train.spike_factor=inf', 'train.skip_spikes=true'], "nearest setting that is read is 'train.spike_factor'"),
  ],
)
def test_settings_that_nothing_would_read(base, settings, message):
  with pytest.raises(UserError) as error:
    override(base, settings)
  assert message in str(error.value)
  override(base, settings[:-1])  # only the last one is refused


@pytest.mark.parametrize(
  'cls, fields, message',
  [
    (TrainConfig, {'steps': '100'}, "train.steps is '100': it must be a whole number"),
    (TrainConfig, {'steps': 1e4}, 'train.steps is 10000.0: it must be a whole number'),
    (TrainConfig, {'steps': True}, 'train.steps is True: it must be a whole number'),
    (OptimConfig, {'learning_rate': '2e-5'}, "optim.learning_rate is '2e-5': it must be a number"),
    (DataConfig, {'sources': 'gsm8k'}, "data.sources is 'gsm8k': it must be a tuple, each element text"),
    (DataConfig, {'data_dir': 5}, 'data.data_dir is 5: it must be text or None'),
    (DataConfig, {'system_prompt': None}, 'data.system_prompt is None: it must be text'),
  ],
)
def test_types_in_python(base, cls, fields, message):
  name = {TrainConfig: 'train', OptimConfig: 'optim', DataConfig: 'data'}[cls]
  with pytest.raises(UserError) as error:
    dataclasses.replace(base, **{name: cls(**fields)})
  assert str(error.value) == message


def test_sequences_longer_than_the_model(base):
  base.check_model(base.model)
  longer = override(base, ['data.seq_len=257'])
  with pytest.raises(UserError, match="above the model's max_position_embeddings 256: set data.seq_len=256 or less"):
    longer.check_model(longer.model)


def test_questions_whose_rotation_follows_their_answers_are_not_shared(base):
  shared = override(base, ['data.share_prompts=true'])
  for scaling, longest in (
    (RopeScaling('dynamic', 2.0), 100),
    (RopeScaling('longrope', 1.0, 100, short_factor=(1.0,) * 16, long_factor=(2.0,) * 16), 256),
  ):
    model = dataclasses.replace(base.model, rope_scaling=scaling, max_position_embeddings=longest)
    base.check_model(model)
    override(shared, ['data.seq_len=100']).check_model(model)
    with pytest.raises(UserError, match=f'beyond 100 tokens, rotary scaling {scaling.rope_type} turns a question'):
      shared.check_model(model)
  shared.check_model(dataclasses.replace(base.model, rope_scaling=RopeScaling('linear', 2.0)))


@pytest.mark.parametrize('cls', [ModelConfig, DataConfig, OptimConfig, MeshConfig, TrainConfig, Experiment])
def test_every_field_is_read_outside_config_py(cls):
  """As `something.field`, anywhere in the package but where it is declared and checked."""
  read = set()
  for file in PACKAGE.rglob('*.py'):
    if file.name not in ('config.py', 'data_config.py'):
      for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
          read.add(node.attr)
  assert 'hidden_size' in read and 'no_such_field' not in read
  assert [field.name for field in dataclasses.fields(cls) if field.name not in read] == []


def test_json_and_back(base):
  changed = override(base, ['data.weights=1', 'optim.clip_norm=inf', 'data.system_prompt=好 "x"\n'])
  for experiment in (base, changed, load('math_qwen_7b')):
    assert config.from_json(config.to_json(experiment), 'here') == experiment


@pytest.mark.parametrize('text', ['', '{', '[]', '{"model": 3}', '{"modl": {}}', '{"model": {"vocab_size": 3}}'])
def test_json_that_is_no_experiment(text):
  with pytest.raises(UserError, match='^run/experiment.json is not a resolved config of mathqwen'):
    config.from_json(text, 'run/experiment.json')


def test_json_with_a_wrong_type(base):
  text = config.to_json(base).replace('"steps": 1000', '"steps": "many"')
  with pytest.raises(UserError, match="train.steps is 'many': it must be a whole number"):
    config.from_json(text, 'here')


# --- declarations ---


def test_choices_are_what_the_code_knows():
  """config.py imports neither JAX nor the code that these names choose from."""
  from mathqwen.commands import _asking
  from mathqwen.model import adapted, attention, cache, quantized, stack
  from mathqwen.planning import search
  from mathqwen.training import optim

  choices = {name: setting.choices for name, setting in config.SETTINGS.items() if setting.choices}
  rope_type = 'model.rope_scaling.rope_type'  # each of them is computed in tests/model/test_rotary.py
  others = {'optim.name', 'optim.schedule', 'train.remat', 'train.attention', 'train.compute_dtype'}
  of_adapters = {'train.adapter.targets', 'train.adapter.base'}
  of_pairs = {'train.objective', 'train.dpo_form'}  # both of each are trained in tests/training/test_dpo_run.py
  assert set(choices) == {rope_type, *others, *of_adapters, *of_pairs}
  assert choices['train.adapter.targets'] == tuple(adapted.OUTPUTS)
  assert choices['train.adapter.base'] == ('float32', 'bfloat16', *quantized.KINDS)
  moment_bytes = {name: 2 * dtype(0).nbytes for name, dtype in optim.MOMENTS.items()}
  assert moment_bytes == {name: OptimConfig(name=name).moment_bytes for name in choices['optim.name']}
  assert choices['train.remat'] == tuple(stack.REMAT) == ('none', *search.POLICIES)
  assert set(choices['train.attention']) == {'auto', *attention.IMPLEMENTATIONS}
  for schedule in choices['optim.schedule']:
    assert float(optim.schedule(OptimConfig(schedule=schedule, warmup_steps=2), 10)(2)) == pytest.approx(2e-5)
  assert _asking.CACHE_DTYPES == cache.DTYPES


def test_a_setting_that_changes_no_weight_may_change_on_resume():
  changed_by_resume = {n for n, s in config.SETTINGS.items() if s.resume() != 'no'}
  assert {n for n, s in config.SETTINGS.items() if not s.changes_weights} == changed_by_resume - {
    *('init', 'train.steps', 'train.spike_factor', 'train.skip_spikes')
  }


def test_every_setting_has_a_help():
  for name, setting in config.SETTINGS.items():
    assert len(setting.help) > 5 and '|' not in setting.help, name
    assert not setting.help.endswith('.'), name


@pytest.mark.parametrize(
  'name, allowed',
  [
    ('train.steps', 'at least 1'),
    ('optim.beta1', 'at least 0 and below 1'),
    ('optim.final_ratio', 'from 0 to 1'),
    ('optim.learning_rate', 'above 0 and finite'),
    ('optim.clip_norm', 'above 0'),
    ('optim.schedule', 'one of cosine, linear, constant'),
    ('data.weights', 'above 0 and finite'),
    ('data.system_prompt', ''),
  ],
)
def test_bounds_in_words(name, allowed):
  assert config.SETTINGS[name].allowed() == allowed


def test_values_at_the_bounds(base):
  for setting in ('optim.clip_norm=inf', 'optim.beta1=0', 'optim.final_ratio=1', 'data.seed=4294967295'):
    override(base, [setting])
  for setting in ('optim.clip_norm=nan', 'optim.beta1=1', 'optim.final_ratio=1.1', 'data.seed=4294967296'):
    with pytest.raises(UserError, match='it must be'):
      override(base, [setting])


def test_changes_as_values(base):
  assert override(base, {'train.steps': 2000, 'data.weights': (1.0,)}) == override(
    base, ['train.steps=2000', 'data.weights=1']
  )
  with pytest.raises(UserError, match="train.steps is '2000': it must be a whole number"):
    override(base, {'train.steps': '2000'})
  with pytest.raises(UserError, match="no such setting; did you mean 'train.steps'"):
    override(base, {'train.step': 2000})


# --- files ---


@pytest.mark.parametrize(
  'text, message',
  [
    ('config = 3\n', 'does not define `config = Experiment(...)`'),
    ('x = 1\n', 'does not define `config = Experiment(...)`'),
    ('\nconfig = Experiment(\n', ':2: SyntaxError'),
    ('\n\nthis\n', ":3: NameError: name 'this' is not defined; correct the config file"),
    ('from mathqwen.config import Experiment\nconfig = Experiment(modl=3)\n', ':2: TypeError'),
    ('import no_such_module\n', ':1: ModuleNotFoundError'),
    ('warmup = 1\nwarmup / 0\n', ':2: ZeroDivisionError: division by zero; correct the config file'),
    ('assert 1 == 2\n', ':1: AssertionError'),
    ("from mathqwen.model.config import PRESETS\nPRESETS['Qwen-8B']\n", ":2: KeyError: 'Qwen-8B'"),
  ],
)
def test_broken_files(tmp_path, text, message):
  (tmp_path / 'mine.py').write_text(text)
  with pytest.raises(UserError) as error:
    load(str(tmp_path / 'mine.py'))
  assert str(error.value).startswith(f'{tmp_path}/mine.py') and message in str(error.value)


@pytest.mark.parametrize(
  'text, summary',
  [
    ('"""Größer\nals."""\n'.encode(), 'Größer'),
    (b'# coding: latin-1\n"""Gr\xf6\xdfer"""\n', 'Größer'),
    (b'"""Gr\xf6\xdfer"""\n', ''),
  ],
)
def test_summaries_are_read_as_python_reads_the_file(tmp_path, text, summary):
  path = tmp_path / 'mine.py'
  path.write_bytes(text)
  assert config_files.summary(path) == summary


def test_unknown_names(tmp_path):
  with pytest.raises(UserError, match="no config 'dem': known are .*; did you mean 'demo'?"):
    load('dem')
  with pytest.raises(UserError, match='no config file nope.py'):
    load('nope.py')


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('*.py')), ids=lambda path: path.stem)
def test_files_in_configs(path):
  experiment = load(path.stem)
  experiment.check_model(experiment.model)
  docstring = ast.get_docstring(ast.parse(path.read_text())) or ''
  command = 'mathqwen demo' if path.stem == 'demo' else f'mathqwen train {path.stem} '
  assert command in docstring
  assert docstring.splitlines()[0].strip()


@pytest.mark.parametrize('name, model', [('math_qwen_7b', 'Qwen-7B'), ('math_qwen_14b', 'Qwen-14B')])
def test_the_recipe(name, model):
  """Qwen Technical Report (arXiv 2309.16609), sections 3.1.2 and 5.1."""
  e = load(name)
  assert e.model == PRESETS[model]
  assert e.init == f'Qwen/{model}'
  assert (e.data.batch_size, e.data.seq_len) == (128, 1024)
  assert (e.optim.learning_rate, e.optim.warmup_steps) == (2e-5, 1430)
  assert (e.optim.beta1, e.optim.beta2, e.optim.eps) == (0.9, 0.95, 1e-8)
  assert (e.optim.weight_decay, e.optim.clip_norm) == (0.1, 1.0)
  assert (e.train.steps, e.train.dropout, e.train.compute_dtype) == (50_000, 0.1, 'bfloat16')


def test_the_order_of_the_targets_of_adapters_makes_no_other_run():
  assert AdapterConfig(targets=('v', 'gate', 'q')) == AdapterConfig(targets=('q', 'v', 'gate'))
