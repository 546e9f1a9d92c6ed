"""Tiny models. Every weight is random, norms and biases too, so that none can be dropped or mixed up unseen."""

import glob
import os

import pytest
from seen_in_browser import browser, see  # noqa: F401 - fixtures

from mathqwen import compat

# libtpu, in the dev extra, is there for its compiler. Without an accelerator, JAX would have it look for a TPU in every
# process, with a screenful of warnings.
if not any(glob.glob(f'/dev/{device}') for device in ('accel*', 'vfio/[0-9]*', 'nvidia[0-9]*')):
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Compiling takes most of the time here, and the models are too small to gain from it.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
# Tests that set XLA_FLAGS keep these. xdist's workers inherit them.
if compat.fusion_emitters_flag() not in os.environ.setdefault('XLA_FLAGS', ''):
  os.environ['XLA_FLAGS'] += f' {compat.fusion_emitters_flag()}'

# The two processes take files in this order: a long file at the end would leave one of them idle.
LONGEST = ('test_processes.py', 'test_step.py', 'test_loop.py', 'test_qwen.py', 'test_generate.py', 'test_meshes.py')


def pytest_collection_modifyitems(items):
  place = {name: i for i, name in enumerate(LONGEST)}
  items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


def pytest_make_parametrize_id(val, argname):
  """Bytes are no part of the names of tests: an archive holds the time, and both processes need equal names."""
  return argname if isinstance(val, bytes) else None


SIZES = {
  'vocab_size': 97,  # odd
  'hidden_size': 48,
  'intermediate_size': 80,
  'num_hidden_layers': 3,
  'num_attention_heads': 6,
  'num_key_value_heads': 2,
  'max_position_embeddings': 128,
  'rms_norm_eps': 1e-3,  # large, and the base unusual, so that a default in their place shows
  'tie_word_embeddings': False,
}
ROPE_THETA = 3_000.0
FAMILIES = {
  'qwen2': {'qkv_bias': True, 'qk_norm': False, 'head_dim': 8},
  'qwen3': {'qkv_bias': False, 'qk_norm': True, 'head_dim': 12},  # 6 * 12 is not 48
  'llama': {'qkv_bias': False, 'qk_norm': False, 'head_dim': 8},
}


@pytest.fixture(scope='session')
def tiny_config():
  """tiny_config('qwen3', num_hidden_layers=2) -> ModelConfig"""
  from mathqwen.model.config import ModelConfig

  return lambda family='qwen2', **changes: ModelConfig(
    **{**SIZES, 'rope_theta': ROPE_THETA, **FAMILIES[family], **changes}
  )


@pytest.fixture(scope='session')
def random_params():
  """random_params(cfg) -> float32 weights: norms around 1, biases around 0, matrices large enough to matter."""
  import jax
  import numpy as np

  from mathqwen.model import parameters

  def make(cfg, seed=0):
    rng = np.random.default_rng(seed)

    def draw(path, struct):
      name = path[-1].key
      mean, scale = (1, 0.3) if name.endswith('norm') else (0, 0.3 if name.endswith('bias') else 0.15)
      return jax.numpy.asarray(mean + scale * rng.standard_normal(struct.shape), struct.dtype)

    return jax.tree_util.tree_map_with_path(draw, parameters.abstract(cfg))

  return make


@pytest.fixture(scope='session')
def questions_and_answers():
  """questions_and_answers([2, 1]) -> (ids, mask) of two answers to one question and of one to another, shuffled."""
  import numpy as np

  def make(counts, vocab_size=97, longest=8, seed=0):
    rng = np.random.default_rng(seed)
    found = []
    for number, count in enumerate(counts):
      question = np.array([number, *rng.integers(0, vocab_size, rng.integers(2, longest))], np.int32)
      for answer in range(count):
        tokens = np.array([answer, *rng.integers(0, vocab_size, rng.integers(1, longest))], np.int32)
        mask = np.repeat(np.array([0, 1], np.uint8), [len(question), len(tokens)])
        mask[len(question) + 1 :] &= rng.random(len(tokens) - 1) < 0.8  # later turns of a user
        found.append((np.concatenate([question, tokens]), mask))
    return [found[i] for i in rng.permutation(len(found))]

  return make


@pytest.fixture(scope='session')
def abstract_mesh():
  """abstract_mesh(fsdp=2, tensor=4) -> a mesh without devices, whose arrays XLA places (JAX 0.11: not the default)."""
  import jax

  def make(**shape):
    automatic = (jax.sharding.AxisType.Auto,) * len(shape)
    return jax.sharding.AbstractMesh(tuple(shape.values()), tuple(shape), axis_types=automatic)

  return make


@pytest.fixture(scope='session')
def equations():
  """equations(jax.make_jaxpr(f)(x), 'dot_general') -> those equations, also of the programs that it calls."""
  import jax

  def find(jaxpr, name):
    jaxpr = getattr(jaxpr, 'jaxpr', jaxpr)  # of a ClosedJaxpr
    found = []
    for equation in jaxpr.eqns:
      if equation.primitive.name == name:
        found.append(equation)
      for value in jax.tree.leaves(equation.params):
        if hasattr(getattr(value, 'jaxpr', value), 'eqns'):
          found += find(value, name)
    return found

  return find


@pytest.fixture(scope='session')
def save_in_shards():
  """save_in_shards(state, folder) writes a state_dict as two pytorch_model files with their index."""
  import json

  torch = pytest.importorskip('torch')

  def save(state, folder):
    names = sorted(state)
    weight_map = {}
    for number in (1, 2):
      file = f'pytorch_model-{number:05}-of-00002.bin'
      part = {name: state[name] for name in names[number - 1 :: 2]}
      torch.save(part, folder / file)
      weight_map |= dict.fromkeys(part, file)
    (folder / 'pytorch_model.bin.index.json').write_text(json.dumps({'weight_map': weight_map}))

  return save


@pytest.fixture(scope='session')
def torch_model():
  """torch_model('qwen3', vocab_size=101) -> float32 model of transformers in evaluation mode."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')

  def make(family='qwen2', seed=0, **changes):
    kinds = {'qwen2': 'Qwen2', 'qwen3': 'Qwen3', 'llama': 'Llama'}
    config = getattr(transformers, f'{kinds[family]}Config')(
      **{
        **SIZES,
        'head_dim': FAMILIES[family]['head_dim'],
        'rope_parameters': {'rope_type': 'default', 'rope_theta': ROPE_THETA},
        **changes,
      },
      attn_implementation='eager',
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
      for name, weight in model.named_parameters():
        mean, scale = (1, 0.3) if 'norm' in name else (0, 0.3 if name.endswith('bias') else 0.15)
        weight.copy_(mean + scale * torch.randn(weight.shape, generator=generator))
    return model

  return make


@pytest.fixture
def from_torch(tmp_path):
  """from_torch(model) -> (cfg, params), through the directory that transformers writes."""
  from mathqwen import hf

  def load(model, name='hf'):
    model.save_pretrained(tmp_path / name)
    cfg = hf.read_config(str(tmp_path / name))
    return cfg, hf.load_params(str(tmp_path / name))

  return load


@pytest.fixture
def fails(capsys):
  """fails('train', ...) -> the error: the last line on stderr, the only one with the program's name."""

  from mathqwen import cli

  def run(*command):
    status = cli.main([str(word) for word in command])
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert status == 2, printed
    assert [line.startswith('mathqwen: ') for line in lines] == [False] * (len(lines) - 1) + [True], lines
    assert 'Traceback' not in printed.err
    return lines[-1].removeprefix('mathqwen: ')

  return run


@pytest.fixture(scope='session')
def llama_model():
  """A tokenizer.model of LLaMA's kind: prefix space, digits and white space kept, byte pieces, <s>, </s>, no ChatML."""
  import io

  import sentencepiece

  from mathqwen.text.testing import CORPUS

  out = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter((CORPUS + '\n小明有苹果').split('\n') * 20),
    model_writer=out,
    vocab_size=450,
    model_type='bpe',
    byte_fallback=True,
    split_digits=True,
    normalization_rule_name='identity',
    remove_extra_whitespaces=False,
    allow_whitespace_only_pieces=True,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  return out.getvalue()


QWEN_TIKTOKEN_SHA256 = 'b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186'


@pytest.fixture(scope='session')
def qwen_tiktoken(pytestconfig):
  """A directory with the real qwen.tiktoken and nothing else: from PyPI once, then from pytest's cache."""
  import hashlib
  import subprocess
  import sys
  import tempfile
  import zipfile

  folder = pytestconfig.cache.mkdir('qwen-tiktoken')
  if not (folder / 'qwen.tiktoken').exists():
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
      # dashscope is not to be installed or imported: its wheel holds the file, two megabytes of it.
      pip = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--retries=1', '--timeout=10', f'--dest={temporary}']
      done = subprocess.run([*pip, 'dashscope==2.0.2'], capture_output=True, text=True)
      if done.returncode:
        pytest.skip(f'the real Qwen vocabulary (dashscope 2.0.2 on PyPI) is out of reach: {done.stderr[-300:]}')
      wheel = zipfile.ZipFile(f'{temporary}/dashscope-2.0.2-py3-none-any.whl')
      file = wheel.extract('dashscope/resources/qwen.tiktoken', temporary)
      os.replace(file, folder / 'qwen.tiktoken')
  assert hashlib.sha256((folder / 'qwen.tiktoken').read_bytes()).hexdigest() == QWEN_TIKTOKEN_SHA256
  return folder


TINY_CONFIG = '''"""Twenty steps of a model of 30,000 parameters.

mathqwen train tiny.py --workdir DIR
"""

from mathqwen.config import DataConfig, Experiment, OptimConfig, TrainConfig
from mathqwen.model.config import ModelConfig

config = Experiment(
  model=ModelConfig(
    vocab_size=1024,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    max_position_embeddings=96,
    tie_word_embeddings=True,
  ),
  data=DataConfig(sources=({train!r},), seq_len=64, batch_size=4, eval_examples=16),
  optim=OptimConfig(learning_rate=3e-3, warmup_steps=5),
  train=TrainConfig(
    steps=20, compute_dtype='float32', remat='none', log_every=3, eval_every=10, checkpoint_every=7, keep_checkpoints=9
  ),
)
'''


@pytest.fixture(scope='session')
def compiled_once(tmp_path_factory):
  """Compiled programs are kept for the session: a run takes seconds less. The environment for subprocesses."""
  import jax

  options = {
    'jax_compilation_cache_dir': str(tmp_path_factory.mktemp('compiled')),
    'jax_persistent_cache_min_compile_time_secs': 0,
    'jax_persistent_cache_min_entry_size_bytes': -1,
  }
  for name, value in options.items():
    jax.config.update(name, value)
  return {name.upper(): str(value) for name, value in options.items()}


@pytest.fixture(scope='session')
def tiny(tmp_path_factory, compiled_once):
  """config: path of TINY_CONFIG; data_dir: 168 sums to train on, about nine steps an epoch, and 8 to test on."""
  import json
  import types

  folder = tmp_path_factory.mktemp('tiny')
  rows = [{'query': f'{a}+{b}=', 'response': str(a + b), 'group': 'sums'} for a in range(11, 27) for b in range(3, 14)]
  (folder / 'data' / 'arithmetic').mkdir(parents=True)
  for name, part in (('train', rows[8:]), ('test', rows[:8])):
    text = ''.join(json.dumps(row) + '\n' for row in part)
    (folder / 'data' / 'arithmetic' / f'{name}.jsonl').write_text(text)
  train = str(folder / 'data' / 'arithmetic' / 'train.jsonl')
  (folder / 'tiny.py').write_text(TINY_CONFIG.replace('{train!r}', repr(train)))
  return types.SimpleNamespace(
    folder=folder, config=str(folder / 'tiny.py'), data_dir=str(folder / 'data'), train=train, env=compiled_once
  )


@pytest.fixture(scope='session')
def trained(tiny):
  """A workdir after all twenty steps, with checkpoints 7, 14 and 20. To be copied, not changed."""
  from mathqwen.cli import main

  workdir = tiny.folder / 'trained'
  assert main(['train', tiny.config, '--workdir', str(workdir)]) == 0
  return workdir
