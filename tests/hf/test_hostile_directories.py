"""Directories that were made to hang, crash or fill the memory end at once, in one line that says which file it is."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

from mathqwen import hf
from mathqwen.chat.chat_format import save_tokenizer
from mathqwen.errors import UserError
from mathqwen.storage.source import open_source
from mathqwen.text.loading import load_tokenizer
from mathqwen.text.testing import tiny_bpe_tokenizer

FILES = (
  *('config.json', 'generation_config.json', 'model.safetensors', 'model.safetensors.index.json'),
  *('tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'chat_template.jinja'),
)


@pytest.fixture(scope='module')
def good(tiny_config, random_params, tmp_path_factory):
  cfg = tiny_config('qwen2', vocab_size=411, num_hidden_layers=1)
  folder = tmp_path_factory.mktemp('hostile') / 'good'
  hf.save(str(folder), random_params(cfg), cfg, tiny_bpe_tokenizer(), 'float32')
  return folder


@pytest.fixture
def directory(good, tmp_path):
  return pathlib.Path(shutil.copytree(good, tmp_path / 'x'))


def opened(directory):
  """Everything that is read before the weights; the error's line, or '' without one. At most a second."""
  start = time.process_time()
  try:
    source = open_source(str(directory))
    source.tokenizer.encode('12 + 30 = 42')
    _ = source.tokenizer.stop_ids, source.tokenizer.bos, source.tokenizer.pad
  except UserError as error:
    return str(error)
  finally:
    assert time.process_time() - start < 2
  return ''


def change(directory, file, **values):
  path = directory / file
  path.write_text(json.dumps(json.loads(path.read_text()) | values))


def put(directory, file, make):
  (directory / file).unlink(missing_ok=True)
  make(directory / file)


@pytest.mark.parametrize('file', FILES)
@pytest.mark.parametrize(
  'make, kind',
  [
    (os.mkfifo, 'is a pipe'),
    (lambda path: path.symlink_to('/dev/zero'), 'is a device'),
    (pathlib.Path.mkdir, 'is a directory'),
    (lambda path: path.symlink_to('nowhere'), 'is a link to a file that is not there'),
  ],
  ids=['pipe', 'device', 'directory', 'link'],
)
def test_what_is_no_file(file, make, kind, directory):
  put(directory, file, make)
  assert f'{directory / file} {kind}' in opened(directory)


@pytest.mark.parametrize('file', [file for file in FILES if file.endswith('json')])
@pytest.mark.parametrize('content', [b'', b'{', b'[' * 10**5, b'{"a": "\xff"}', b'[]', b'5', b'{"a": 1, "a": 2}'])
def test_json_that_is_damaged(file, content, directory):
  (directory / file).write_bytes(content)
  assert file in opened(directory)


def test_larger_than_memory(directory):
  for file in ('tokenizer.json', 'config.json'):
    os.truncate(directory / file, 10**13)
    assert f'{file} has more than' in opened(directory)


CONFIGS = (
  ({'num_hidden_layers': 10**9}, 'model.num_hidden_layers is 1000000000: it must be from 1 to 1000'),
  ({'num_hidden_layers': 1000}, 'it says 1000 layers, and there are 15 tensors'),
  ({'hidden_size': 2**31 - 1}, 'the config says (411, 2147483647)'),
  ({'vocab_size': 2**31 - 1}, 'the config says (2147483647, 48)'),
  ({'intermediate_size': 2**31 - 1}, 'the config says (2147483647, 48)'),
  ({'head_dim': 2**30}, 'the config says (6442450944, 48)'),
  ({'num_attention_heads': 2**31 - 2}, 'the config says (17179869168, 48)'),
  *(
    ({key: value}, f'model.{key} is ')
    for key in ('hidden_size', 'num_hidden_layers', 'max_position_embeddings')
    for value in (10**400, 1e308, -1, 0, 48.0, True, '48', [48], {'a': 1}, float('nan'), float('inf'))
  ),
  *(({'rms_norm_eps': value}, 'model.rms_norm_eps is ') for value in (10**400, -1, 0, True, 'x', [1], float('nan'))),
  *(({'rope_theta': value}, 'rope_theta') for value in (10**400, -1, 0, True, 'x', [1], float('nan'), {})),
  *(({'architectures': value}, 'architectures') for value in (5, 'Qwen2ForCausalLM', {'a': 1}, [5], [None], [[]])),
  *(({'model_type': value}, 'model_type') for value in (5, [], {'a': 1}, 'a\nb\0')),
  *(({'rope_scaling': value}, 'rope') for value in (5, [1], 'yarn', {'type': []}, {'type': 'yarn', 'factor': 'x'})),
  *(
    ({'rope_scaling': {'type': 'yarn', 'factor': 2.0, 'original_max_position_embeddings': value}}, 'rope')
    for value in (0, -1, 1.5, '8', [], 10**400)
  ),
  *(({'rope_scaling': {'type': 'linear', 'factor': value}}, 'rope') for value in (0, -1, 1e-300, 10**400, [], True)),
  *(({'layer_types': value}, 'layer_types') for value in (5, 'full_attention', [5], [], ['full_attention'] * 2)),
  *(({'hidden_act': value}, 'hidden_act') for value in (5, [], None, '')),
)


@pytest.mark.parametrize(('values', 'message'), CONFIGS, ids=lambda value: str(value)[:40])
def test_configs(values, message, directory):
  rope = {} if set(values) & {'rope_theta', 'rope_scaling'} else json.loads((directory / 'config.json').read_text())
  change(directory, 'config.json', **{'rope_parameters': rope.get('rope_parameters')}, **values)
  found = opened(directory)
  assert message in found and str(directory) in found and len(found) < 5000


REGEX = {'type': 'Split', 'behavior': 'Isolated', 'invert': False}
TOKENIZERS = (
  ({'pre_tokenizer': REGEX | {'pattern': {'Regex': r'(\w+\s?)*\d$'}}}, 'cannot encode a text (Onig: '),
  ({'pre_tokenizer': REGEX | {'pattern': {'Regex': '(?<'}}}, 'unmatched parenthesis'),
  *(({'model': value}, 'tokenizer.json cannot be read') for value in (None, 5, [], {}, {'type': 'BPE', 'vocab': 5})),
  *(
    ({'added_tokens': [{'content': 'x', 'id': value}]}, 'tokenizer.json cannot be read')
    for value in (-1, 2**31, 1.5, '5', None, True, [5])
  ),
  *(({'added_tokens': value}, 'tokenizer.json cannot be read') for value in (5, 'x', [5], [{}], [{'id': 5}])),
)


@pytest.mark.parametrize(('values', 'message'), TOKENIZERS, ids=lambda value: str(value)[:60])
def test_tokenizers(values, message, directory):
  change(directory, 'tokenizer.json', **values)
  assert message in opened(directory)


def test_a_pointer_in_place_of_the_tokenizer(directory):
  (directory / 'tokenizer.json').write_bytes(b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n')
  assert 'tokenizer.json is a pointer of Git LFS, not the file itself' in opened(directory)


def test_a_text_that_takes_too_long(directory, monkeypatch):
  from mathqwen.text import huggingface

  monkeypatch.setattr(huggingface, '_SECONDS', 0.05)
  monkeypatch.setattr(huggingface.HuggingFace, '_encode', lambda self, texts: time.sleep(0.5))
  assert 'characters takes it more than 0.05 seconds' in opened(directory)


ODD = (None, 5, [1], ['a'], {'a': 1}, {'content': 5}, {'content': ['x']}, [[[]]], True, '', {'5': 'x'}, 1e300, 10**400)


@pytest.mark.parametrize(
  'key', ['bos_token', 'eos_token', 'pad_token', 'add_bos_token', 'tokenizer_class', 'added_tokens_decoder', 'zzz']
)
def test_odd_types_in_tokenizer_config_that_nothing_reads(key, directory, tmp_path):
  """tokenizer.json has all that is needed; what makes no sense beside it is passed over."""
  want = opened_tokenizer = load_tokenizer(directory)
  for value in ODD:
    change(directory, 'tokenizer_config.json', **{key: value})
    opened_tokenizer = load_tokenizer(directory)
    assert opened_tokenizer.encode('a 12') == want.encode('a 12')
    assert opened_tokenizer.stop_ids == want.stop_ids and opened_tokenizer.bos is None
  save_tokenizer(opened_tokenizer, tmp_path / 'saved')


def test_vocab_and_merges_with_the_ends_of_lines_of_windows(directory):
  definition = json.loads((directory / 'tokenizer.json').read_text())
  want = load_tokenizer(directory).encode('Natalia sold 48 clips')
  (directory / 'tokenizer.json').unlink()
  (directory / 'vocab.json').write_bytes(b'\xef\xbb\xbf' + json.dumps(definition['model']['vocab']).encode())
  lines = ['#version: 0.2', *map(' '.join, definition['model']['merges']), '']
  for start, end in ((b'', '\n'), (b'', '\r\n'), (b'\xef\xbb\xbf', '\r\n')):
    (directory / 'merges.txt').write_bytes(start + end.join(lines).encode())
    assert load_tokenizer(directory).encode('Natalia sold 48 clips') == want
  for values in ({'tokenizer_class': 5}, {'tokenizer_class': 'Qwen2Tokenizer', 'added_tokens_decoder': [1]}):
    change(directory, 'tokenizer_config.json', **values)
    with pytest.raises(UserError, match=r'vocab.json \+ merges.txt'):
      load_tokenizer(directory)


@pytest.mark.parametrize('file', ['../x', '/etc/passwd', 'a\nb', 'a\0b', '', '.', '..', 'x' * 300, 5, None, {'x': 1}])
def test_names_in_an_index(file, directory):
  (directory / 'model.safetensors').unlink()
  (directory / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': {'model.norm.weight': file}}))
  assert str(directory) in opened(directory)


def test_an_error_is_one_printable_line(directory, tmp_path, fails):
  (directory / 'model.safetensors').unlink()
  index = {'weight_map': {'a': '\x1b[2J\r\n', 'b' * 10**6: 'c'}}
  (directory / 'model.safetensors.index.json').write_text(json.dumps(index))
  message = fails('convert', 'from-hf', directory, tmp_path / 'out')
  assert message.isprintable() and len(message) <= 10_000


CHILD = """
import re, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))  # so that a defect ends the child, not this machine
from mathqwen.errors import UserError
from mathqwen.text.loading import load_tokenizer
try:
  load_tokenizer(sys.argv[1])
except UserError as error:
  # Not ru_maxrss, which begins with that of the process that started this one.
  print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1], error)
"""


def test_memory(directory):
  put(directory, 'tokenizer.json', lambda path: path.symlink_to('/dev/zero'))
  child = [sys.executable, '-c', CHILD, str(directory)]
  done = subprocess.run(child, capture_output=True, text=True, timeout=20)
  kilobytes, _, message = done.stdout.partition(' ')
  assert 'is a device' in message and int(kilobytes) < 200_000, done.stderr
