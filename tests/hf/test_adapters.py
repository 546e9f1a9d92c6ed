"""LoRA adapters: merged as PEFT merges them, and what is not merged is refused.

Where PEFT is installed, of the extra dev, its logits are compared.
"""

import json
import math

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from mathqwen import hf
from mathqwen.chat.chat_format import ChatFormat, save_tokenizer
from mathqwen.conversion.to_hf import convert_to_hf
from mathqwen.errors import UserError
from mathqwen.files import hub
from mathqwen.storage.source import open_source
from mathqwen.text.testing import tiny_bpe_tokenizer

D, F, V, L = 48, 80, 97, 2  # of the base; 6 heads of 8, 2 of keys and values
INPUTS = {'q_proj': D, 'k_proj': D, 'o_proj': D, 'gate_proj': D, 'down_proj': F, 'lm_head': D}
OUTPUTS = {'q_proj': 48, 'k_proj': 16, 'o_proj': D, 'gate_proj': F, 'down_proj': D, 'lm_head': V}
Q0, Q1 = (f'model.layers.{layer}.self_attn.q_proj' for layer in range(2))
DOWN = 'model.layers.1.mlp.down_proj'
EMBED, HEAD = 'model.embed_tokens', 'lm_head'


@pytest.fixture(scope='module')
def bases(tiny_config, random_params, tmp_path_factory):
  """{tied: directory} of a base."""
  folder = tmp_path_factory.mktemp('bases')
  for tied in (False, True):
    cfg = tiny_config('qwen2', num_hidden_layers=L, tie_word_embeddings=tied)
    hf.save(str(folder / str(tied)), random_params(cfg), cfg, None, 'float32')
  return {tied: folder / str(tied) for tied in (False, True)}


def draw(*shape):
  return np.random.default_rng(math.prod(shape)).normal(0, 0.2, shape).astype(np.float32)


def pair(module, rank=4):
  """The two tensors of a module, by their names in the file."""
  if module == EMBED:
    return {f'{module}.lora_embedding_A': draw(rank, V), f'{module}.lora_embedding_B': draw(D, rank)}
  leaf = module.rpartition('.')[2]
  return {
    f'{module}.lora_A.weight': draw(rank, INPUTS[leaf]),
    f'{module}.lora_B.weight': draw(OUTPUTS[leaf], rank),
  }


def write(folder, base, tensors, **values):
  folder.mkdir(exist_ok=True)
  config = {
    'peft_type': 'LORA',
    'base_model_name_or_path': str(base),
    'r': 4,
    'lora_alpha': 6,
    'task_type': 'CAUSAL_LM',
  }
  config |= {'use_dora': False, 'layer_replication': None, 'loftq_config': {}, 'init_lora_weights': True}
  (folder / 'adapter_config.json').write_text(json.dumps(config | values))
  named = {f'base_model.model.{name}': tensor for name, tensor in tensors.items()}
  safetensors.numpy.save_file(named, folder / 'adapter_model.safetensors')
  return folder


def state_of(path, tmp_path):
  """Every tensor of a MODEL, through an export without a check."""
  source = open_source(str(path))
  hf.save(str(tmp_path / 'state'), source.weights, source.config, None, 'float32')
  return safetensors.numpy.load_file(tmp_path / 'state' / 'model.safetensors'), source


def delta(tensors, module, scale):
  if module == EMBED:
    return scale * (tensors[f'{module}.lora_embedding_B'] @ tensors[f'{module}.lora_embedding_A']).T
  return scale * tensors[f'{module}.lora_B.weight'] @ tensors[f'{module}.lora_A.weight']


def dora(weight, tensors, module, scale):
  merged = weight + delta(tensors, module, scale)
  return tensors[f'{module}.lora_magnitude_vector'][:, None] * merged / np.sqrt(np.square(merged).sum(1, keepdims=True))


MAGNITUDE = {f'{Q0}.lora_magnitude_vector': np.abs(draw(48)) + 1}
BIAS = {f'{Q0}.base_layer.bias': draw(48), 'model.norm.weight': draw(D)}
# The base is tied, the adapter's tensors, its config, {name of a weight: how it is merged}
CASES = {
  'two modules': (False, {**pair(Q0), **pair(DOWN)}, {}, {Q0: 1.5, DOWN: 1.5}),
  'rsLoRA': (False, pair(Q0), {'use_rslora': True}, {Q0: 3.0}),
  'fan_in_fan_out': (False, pair(Q0), {'fan_in_fan_out': True}, {Q0: 1.5}),
  'patterns': (
    False,
    {**pair(Q0, 3), **pair(Q1, 3)},
    {'rank_pattern': {'q_proj': 3}, 'alpha_pattern': {'^model.layers.0.self_attn.q_proj': 12}},
    {Q0: 4.0, Q1: 2.0},
  ),
  'embedding and head': (False, {**pair(EMBED), **pair(HEAD)}, {}, {EMBED: 1.5, HEAD: 1.5}),
  'head of a tied base': (True, pair(HEAD), {}, {HEAD: 1.5}),
  'embedding of a tied base': (True, pair(EMBED), {}, {EMBED: 1.5}),
  'DoRA': (False, pair(Q0) | MAGNITUDE, {'use_dora': True}, {Q0: dora}),
  'biases and norms': (False, pair(Q1) | BIAS, {'bias': 'all'}, {Q1: 1.5}),
}


@pytest.mark.parametrize('case', CASES)
def test_merged_weights(case, bases, tmp_path, capsys):
  tied, tensors, values, merged = CASES[case]
  folder = write(tmp_path / 'adapter', bases[tied], tensors, **values)
  got, source = state_of(folder, tmp_path)
  assert f'merged the adapter {folder}, of rank 4, into {bases[tied]}' in capsys.readouterr().err
  want = safetensors.numpy.load_file(bases[tied] / 'model.safetensors')
  if tied:  # only one of the two is changed
    want[f'{HEAD}.weight'] = want[f'{EMBED}.weight']
    assert not source.config.tie_word_embeddings
  assert set(got) == set(want)
  for module, how in merged.items():
    name = f'{module}.weight'
    want[name] = dora(want[name], tensors, module, 1.5) if how is dora else want[name] + delta(tensors, module, how)
  for name, tensor in tensors.items():
    if 'lora' not in name:
      want[name.replace('.base_layer', '')] = tensor
  for name, tensor in want.items():
    assert np.abs(got[name] - tensor).max() < 1e-6, name


PEFT = {
  'all linear': (False, {'target_modules': 'all-linear'}),
  'rsLoRA': (False, {'target_modules': ['q_proj', 'down_proj'], 'use_rslora': True}),
  'DoRA': (False, {'target_modules': ['q_proj', 'o_proj'], 'use_dora': True}),
  'patterns': (
    False,
    {
      'target_modules': ['q_proj', 'v_proj'],
      'rank_pattern': {'q_proj': 3, 'layers.1.self_attn.v_proj': 5},
      'alpha_pattern': {'^model.layers.0.self_attn.q_proj': 7},
    },
  ),
  'embedding and head': (False, {'target_modules': ['embed_tokens', 'q_proj', 'lm_head']}),
  'whole modules': (False, {'target_modules': ['q_proj'], 'modules_to_save': ['embed_tokens', 'lm_head']}),
  'biases': (False, {'target_modules': ['q_proj', 'k_proj'], 'bias': 'all'}),
  'one layer': (False, {'target_modules': ['q_proj'], 'layers_to_transform': [1]}),
  'fan_in_fan_out': (False, {'target_modules': ['q_proj'], 'fan_in_fan_out': True}),
  'head of a tied base': (True, {'target_modules': ['lm_head', 'q_proj']}),
  'embedding of a tied base': (True, {'target_modules': ['embed_tokens', 'q_proj']}),
  'whole embedding of a tied base': (True, {'target_modules': ['q_proj'], 'modules_to_save': ['embed_tokens']}),
}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('case', PEFT)
def test_logits_are_those_of_peft(case, torch_model, tmp_path):
  """Of its model before merging: its merge of a tied embedding changes the head as well."""
  peft = pytest.importorskip('peft', reason='PEFT, of the extra dev, is not installed')
  torch = pytest.importorskip('torch')
  from mathqwen.inference.model import load

  tied, options = PEFT[case]
  base = torch_model('qwen2', tie_word_embeddings=tied)
  base.save_pretrained(tmp_path / 'base')
  model = peft.get_peft_model(base, peft.LoraConfig(task_type='CAUSAL_LM', r=4, lora_alpha=6, **options))
  torch.manual_seed(0)
  with torch.no_grad():
    for name, weight in model.named_parameters():
      if weight.requires_grad:
        weight.add_(torch.rand(weight.shape) if 'magnitude' in name else torch.randn(weight.shape) * 0.2)
    want = model(torch.arange(20)[None]).logits.numpy()
  model.save_pretrained(tmp_path / 'adapter')
  file = tmp_path / 'adapter' / 'adapter_config.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | {'base_model_name_or_path': str(tmp_path / 'base')}))
  got = load(str(tmp_path / 'adapter'), dtype='float32').logits(np.arange(20)[None])
  assert np.abs(got - want).max() < 1e-4 * want.std()


@pytest.mark.parametrize('kind', ['safetensors', 'bin'])
@pytest.mark.parametrize('names', ['plain', 'default', 'wrapped'])
def test_files_of_an_adapter(kind, names, bases, tmp_path):
  """Beside the base, as safetensors and as a file of torch, with names as older versions and DeepSpeed write them."""
  tensors = pair(Q0)
  folder = tmp_path / 'both'
  folder.mkdir()
  for file in bases[False].iterdir():
    (folder / file.name).write_bytes(file.read_bytes())
  if names == 'default':
    tensors = {name.replace('.weight', '.default.weight'): tensor for name, tensor in tensors.items()}
  write(folder, 'not/there', tensors)
  if names == 'wrapped' or kind == 'bin':
    prefix = 'module.' if names == 'wrapped' else ''
    tensors = {f'{prefix}base_model.model.{name}': tensor for name, tensor in tensors.items()}
    safetensors.numpy.save_file(tensors, folder / 'adapter_model.safetensors')
  if kind == 'bin':
    torch = pytest.importorskip('torch')
    torch.save({n: torch.tensor(t) for n, t in tensors.items()}, folder / 'adapter_model.bin')
    (folder / 'adapter_model.safetensors').unlink()
  got, _ = state_of(folder, tmp_path)
  want = safetensors.numpy.load_file(folder / 'model.safetensors')[f'{Q0}.weight'] + delta(pair(Q0), Q0, 1.5)
  assert np.abs(got[f'{Q0}.weight'] - want).max() < 1e-6


def test_an_embedding_with_other_rows(bases, tmp_path):
  """Tokens were added before training: `modules_to_save` holds an embedding and a head with more rows."""
  saved = {f'{EMBED}.weight': draw(V + 2, D), f'{HEAD}.modules_to_save.default.weight': draw(V + 2, D) * 2}
  values = {'modules_to_save': ['embed_tokens', 'lm_head']}
  got, source = state_of(write(tmp_path / 'adapter', bases[False], pair(Q0) | saved, **values), tmp_path)
  assert source.config.vocab_size == V + 2
  assert np.array_equal(got[f'{EMBED}.weight'], saved[f'{EMBED}.weight'])
  assert np.array_equal(got[f'{HEAD}.weight'], saved[f'{HEAD}.modules_to_save.default.weight'])


def test_a_merged_bfloat16_base_is_exported_as_bfloat16(bases, tmp_path):
  """Merged in float32 and rounded once; training takes the float32 values."""
  tensors = safetensors.numpy.load_file(bases[False] / 'model.safetensors')
  base = tmp_path / 'base'
  base.mkdir()
  (base / 'config.json').write_bytes((bases[False] / 'config.json').read_bytes())
  safetensors.numpy.save_file({n: t.astype(ml_dtypes.bfloat16) for n, t in tensors.items()}, base / 'model.safetensors')
  source = open_source(str(write(tmp_path / 'adapter', base, pair(Q0))))
  assert source.export_dtype == 'bfloat16'
  assert source.weights.dtype(('layers', 'q')) == np.float32 and source.weights.dtype(('embed',)) == ml_dtypes.bfloat16
  convert_to_hf(str(tmp_path / 'adapter'), str(tmp_path / 'out'))  # with its check, to the bit
  written = safetensors.numpy.load_file(tmp_path / 'out' / 'model.safetensors')
  assert {tensor.dtype for tensor in written.values()} == {np.dtype(ml_dtypes.bfloat16)}
  want = np.float32(tensors[f'{Q0}.weight'].astype(ml_dtypes.bfloat16)) + delta(pair(Q0), Q0, 1.5)
  assert np.abs(source.weights.read(('layers', 'q'))[0].reshape(want.shape) - want).max() < 1e-6


def test_a_tensor_that_holds_several_of_our_weights(tiny_config, random_params, tmp_path):
  """Qwen-1 has queries, keys and values in one tensor."""
  cfg = tiny_config('qwen2', num_hidden_layers=1, num_key_value_heads=6, seq_length=64)
  hf.save(str(tmp_path / 'base'), random_params(cfg), cfg, None, 'float32', layout='qwen1')
  module = 'transformer.h.0.attn.c_attn'
  lora = {f'{module}.lora_A.weight': draw(4, D), f'{module}.lora_B.weight': draw(3 * 48, 4)}
  weights = open_source(str(write(tmp_path / 'adapter', tmp_path / 'base', lora))).weights
  base = safetensors.numpy.load_file(tmp_path / 'base' / 'model.safetensors')[f'{module}.weight']
  got = np.concatenate([weights.read(('layers', name))[0].reshape(48, D) for name in 'qkv'])
  assert np.abs(got - base - delta(lora, module, 1.5)).max() < 1e-6


HUGE = {f'{Q0}.lora_A.weight': np.zeros((4, D), np.int8), f'{Q0}.lora_B.weight': draw(48, 4)}
REFUSED = {
  'another method': (pair(Q0), {'peft_type': 'IA3'}, "peft_type 'IA3' is not merged here, only LORA"),
  'mlx-lm': (pair(Q0), {'peft_type': None, 'fine_tune_type': 'lora'}, 'is of mlx-lm, .* merge it with mlx_lm.fuse'),
  'unknown keys': (
    pair(Q0),
    {'use_qalora': True, 'new': 'x'},
    'asks for .* use_qalora True; new x; merge it with PEFT',
  ),
  'bias of the adapter': (pair(Q0), {'lora_bias': True}, 'lora_bias True'),
  'PiSSA': (pair(Q0), {'init_lora_weights': 'pissa'}, "init_lora_weights 'pissa', which changes the base too"),
  'no rank': (pair(Q0), {'r': None}, "r is 'None': it must be a positive number"),
  'an infinite alpha': (pair(Q0), {'lora_alpha': 1e400}, 'lora_alpha is'),
  'an expression': (pair(Q0), {'rank_pattern': {'(.*a+)+$': 4}}, r'rank_pattern has .* which is more than a name'),
  'a table that is none': (pair(Q0), {'alpha_pattern': [1]}, 'alpha_pattern is list'),
  'another rank': (pair(Q0), {'r': 8}, rf'{Q0}.lora_A has shape \(4, 48\), base and rank say \(8, 48\)'),
  'no B': ({f'{Q0}.lora_A.weight': draw(4, D)}, {}, f'{Q0} has no lora_B'),
  'no module': (
    {n.replace('q_proj', 'w_pack'): t for n, t in pair(Q0).items()},
    {},
    'model.layers.0.self_attn.w_pack has no weight in the base',
  ),
  'DoRA without lengths': (pair(Q0), {'use_dora': True}, f'{Q0} has no lora_magnitude_vector'),
  'lengths without DoRA': (pair(Q0) | MAGNITUDE, {}, f'{Q0} has lora_magnitude_vector'),
  'a module that was left out': (
    pair(Q0),
    {'target_modules': ['q_proj']},
    'layers.1.self_attn.q_proj is in target_modules and the adapter has nothing for it',
  ),
  'a weight that the base lacks': (pair(Q0) | {'score.weight': draw(2, D)}, {}, 'score.weight is not in the base'),
  'whole numbers': (HUGE, {}, 'lora_A.weight is I8'),
  'no base': (pair(Q0), {'base_model_name_or_path': None}, 'names no base_model_name_or_path: copy the adapter'),
  'a base elsewhere': (pair(Q0), {'base_model_name_or_path': '/not/there'}, 'its base /not/there is not there: copy'),
  'a scheme': (pair(Q0), {'base_model_name_or_path': 's3://x/y'}, 's3: is not a scheme'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_is_not_merged_is_refused_by_name(case, bases, tmp_path):
  tensors, values, message = REFUSED[case]
  folder = write(tmp_path / 'adapter', bases[False], tensors, **values)
  with pytest.raises(UserError, match=message) as error:
    open_source(str(folder))
  assert '\n' not in str(error.value)


def test_where_a_base_is_looked_for(bases, tmp_path, monkeypatch):
  """Beside the adapter, then from the working directory, then on the hub in the revision that the config asks for."""
  asked = []
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(hub, 'fetch', lambda name: asked.append(name) or str(bases[False]))
  (tmp_path / 'adapter').mkdir()
  for place in ('adapter/base', 'base'):
    (tmp_path / place).symlink_to(bases[False])
    source = open_source(str(write(tmp_path / 'adapter', 'base', pair(Q0), revision='main')))
    assert str(source.weights.directory).endswith(place)
    (tmp_path / place).unlink()
  # A config.json without weights beside it is a copy of the base's.
  (tmp_path / 'adapter' / 'config.json').write_bytes((bases[False] / 'config.json').read_bytes())
  open_source(str(write(tmp_path / 'adapter', 'Qwen/Qwen2.5-7B', pair(Q0), revision='v1')))
  open_source(str(write(tmp_path / 'adapter', 'hf://Qwen/Qwen2.5-7B', pair(Q0))))
  assert asked == ['Qwen/Qwen2.5-7B@v1', 'Qwen/Qwen2.5-7B']


def test_damaged_adapters(bases, tmp_path):
  folder = write(tmp_path / 'adapter', bases[False], pair(Q0))
  nested = write(tmp_path / 'nested', folder, pair(Q0))
  with pytest.raises(UserError, match='is an adapter itself: merge that first'):
    open_source(str(nested))
  (folder / 'adapter_model.safetensors').write_bytes(b'\0' * 40)
  with pytest.raises(UserError, match='is no whole adapter: adapter_model.safetensors cannot be read'):
    open_source(str(folder))
  (folder / 'adapter_model.safetensors').unlink()
  with pytest.raises(UserError, match='is no whole adapter: adapter_model.safetensors is missing'):
    open_source(str(folder))
  (folder / 'adapter_config.json').write_text('{')
  with pytest.raises(UserError, match='adapter_config.json is not JSON'):
    open_source(str(folder))


def test_an_adapter_with_a_template_of_its_own_is_not_asked_with_the_system_turn_of_its_base(
  tiny_config, random_params, tmp_path
):
  cfg, tokenizer = tiny_config('qwen2', vocab_size=411, num_hidden_layers=1), tiny_bpe_tokenizer()
  base = tmp_path / 'base'
  hf.save(str(base), random_params(cfg), cfg, tokenizer, 'float32', system_prompt='Of the base.')
  folder = write(tmp_path / 'adapter', base, pair(Q0))

  def turn():
    source = open_source(str(folder))
    return source.chat().system_turn(source.tokenizer)

  assert turn() == 'Of the base.'
  for trained in ('Of the adapter.', ''):
    save_tokenizer(tokenizer, folder, chat=ChatFormat(system_prompt=trained))
    assert turn() == trained
