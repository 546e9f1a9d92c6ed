"""The notebooks of launch/colab: their form, and each of them run with TINY = True on the CPU."""

import base64
import importlib.util
import json
import pathlib
import re
import struct

import nbformat
import pytest
from nbclient import NotebookClient

import mathqwen
from mathqwen.cli import build_parser

ROOT = pathlib.Path(__file__).parent.parent.parent
FOLDER = ROOT / 'launch' / 'colab'
FIGURES = {'finetune': 2, 'generate': 1, 'evaluate': 1, 'convert': 0, 'qlora': 1, 'sharding': 3}


def read(name):
  return nbformat.read(FOLDER / f'{name}.ipynb', as_version=nbformat.NO_CONVERT)


def code(book):
  return [cell for cell in book.cells if cell.cell_type == 'code']


def test_all_are_here():
  assert {path.stem for path in FOLDER.glob('*.ipynb')} == set(FIGURES)


@pytest.mark.parametrize('name', FIGURES)
def test_form(name):
  book = read(name)
  nbformat.validate(book)
  assert (book.nbformat, book.nbformat_minor) == (4, 5)
  assert len(book.cells) <= 18 and len({cell.id for cell in book.cells}) == len(book.cells)
  assert book.metadata.kernelspec.name == 'python3' and book.metadata.accelerator == 'TPU'
  assert all(cell.outputs == [] and cell.execution_count is None for cell in code(book))

  heading = book.cells[0]
  assert heading.cell_type == 'markdown' and heading.source.startswith('# ')
  (owner,) = re.findall(r'github/([\w-]+)/mathqwen|github\.com/([\w-]+)/mathqwen', heading.source)[0:1]
  page = f'{"".join(owner)}/mathqwen/blob/main/launch/colab/{name}.ipynb'
  address = f'https://colab.research.google.com/github/{page}'
  if name == 'sharding':
    address = f'https://kaggle.com/kernels/welcome?src=https://github.com/{page}'
  assert f']({address})' in heading.source
  assert f']({address})' in (ROOT / 'launch' / 'README.md').read_text()

  parameters = code(book)[0]
  assert book.cells[1] is parameters and parameters.metadata.tags == ['parameters']
  assert all(re.match(r'[A-Z]+(_[A-Z]+)* = ', line) for line in parameters.source.splitlines())
  assert parameters.source.startswith('TINY = False') and f'{"".join(owner)}/mathqwen' in parameters.source
  assert 'NEEDS = [MODEL' in parameters.source and 'Qwen/Qwen3-0.6B' in parameters.source

  text = '\n'.join(cell.source for cell in code(book))
  assert 'pip' not in text  # install.py alone installs
  assert "assert TINY or jax.default_backend() == 'tpu'" in text
  assert text.index('install()') < text.index('import jax')  # nothing is loaded before its version is settled
  # The cell after the parameters installs, takes the token, and fetches model and data.
  assert all(word in code(book)[1].source for word in ('install()', 'use_token()', 'fetch(NEEDS)'))
  if 'KEEP' in parameters.source:
    assert re.search(r'(WORKDIR|OUT) = notebook.keep\(KEEP, ', text)


def test_shared_cells_are_the_same():
  books = [{cell.id: cell.source for cell in read(name).cells} for name in FIGURES]
  assert len({book['install'] for book in books}) == 1
  assert len({book['backend'] for name, book in zip(FIGURES, books, strict=True) if name != 'sharding'}) == 1


@pytest.mark.parametrize('name', FIGURES)
def test_commands_parse(name):
  """What only a TPU would run, too."""
  text = '\n'.join(cell.source for cell in read(name).cells)
  commands = re.findall(r'(?:[%!]|-m )mathqwen ([^`\n]+)', text)
  assert commands
  for command in commands:
    words = re.sub(r'\{(RUN|OPTIONS|steps|settings\[mesh\])\}', lambda m: 'CONFIG' if m[1] == 'RUN' else '', command)
    build_parser().parse_args(words.replace('{LIMIT}', '3').split())


def test_the_commands_that_serve_an_adapter_stop_where_its_training_did():
  (text,) = [cell.source for cell in read('qlora').cells if cell.id == 'next']
  (served,) = [line for line in text.splitlines() if 'vllm serve' in line]
  assert served.endswith('--lora-modules math=adapter --tokenizer adapter --generation-config adapter')
  assert "model.generation_config = GenerationConfig.from_pretrained('adapter')" in text


@pytest.fixture(scope='module')
def folder(tmp_path_factory, compiled_once):
  """Where all are run, one after the other: the tiny model is trained once."""
  return tmp_path_factory.mktemp('notebooks')


def run(name, folder, env, monkeypatch):
  """The cells by id, with their outputs."""
  for key, value in (env | {'PYTHONPATH': str(ROOT), 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}).items():
    monkeypatch.setenv(key, value)
  monkeypatch.delenv('XLA_FLAGS', raising=False)
  book = read(name)
  code(book)[0].source = code(book)[0].source.replace('TINY = False', 'TINY = True')
  book.cells.append(nbformat.v4.new_code_cell('import mathqwen\n\nprint(mathqwen.__file__)', id='whose'))
  NotebookClient(book, timeout=240, kernel_name='python3', resources={'metadata': {'path': str(folder)}}).execute()
  cells = {cell.id: cell for cell in book.cells}
  assert printed(cells['whose']).strip() == str(pathlib.Path(mathqwen.__file__)), 'another mathqwen was run'
  return cells


def printed(cell):
  return ''.join(output.text for output in cell.outputs if output.output_type == 'stream')


def figures(cells):
  """Sizes in pixels of all PNGs."""
  found = [output.data['image/png'] for cell in cells.values() for output in cell.get('outputs', ())
           if 'image/png' in output.get('data', {})]  # fmt: skip
  return [struct.unpack('>II', base64.b64decode(png)[16:24]) for png in found]


def check_finetune(cells, folder):
  assert 'parameters: ' in printed(cells['dry-run']) and 'GiB in all' in printed(cells['dry-run'])
  lines = [json.loads(line) for line in (folder / 'runs/gsm8k/metrics.jsonl').read_text().splitlines()]
  losses = [line['loss'] for line in lines if 'loss' in line]
  assert losses[-1] < losses[0] - 1
  assert '\x1b[32m' in printed(cells['row']) and '<|im_start|>user' in printed(cells['row'])
  assert printed(cells['ask']).strip()


def check_generate(cells, folder):
  assert '37+45=' in printed(cells['greedy'])
  assert printed(cells['chat']).count('assistant') == 2
  # The cell itself asserts that the model sees nothing where the mask hides it.


def check_evaluate(cells, folder):
  scores = json.loads((folder / 'scores/model/arithmetic/scores.json').read_text())
  assert scores['n'] == 62 and len(scores['by_group']) == 16
  assert printed(cells['wrong']).count('--> read as') >= 4
  assert 'McNemar' in printed(cells['compare'])
  (page,) = [out.data['text/html'] for out in cells['page'].outputs if 'Math-Qwen-Chat' in str(out.get('data', ''))]
  assert page.startswith('<div><iframe srcdoc="&lt;!doctype html&gt;')


def check_convert(cells, folder):
  assert 'the same logits as its source to the bit' in printed(cells['convert'])
  assert 'model.safetensors' in printed(cells['convert'])
  if not importlib.util.find_spec('torch'):
    assert 'transformers and torch are not installed here' in printed(cells['transformers'])
    return
  difference = re.search(r'largest difference of a logit: (\S+)', printed(cells['transformers']))
  assert float(difference[1]) < 1e-4


def check_qlora(cells, folder):
  assert 'parameters: ' in printed(cells['dry-run'])
  lines = [json.loads(line) for line in (folder / 'runs/qlora/metrics.jsonl').read_text().splitlines()]
  losses = [line['loss'] for line in lines if 'loss' in line]
  assert losses[-1] < losses[0]
  assert printed(cells['ask']).strip()
  assert "load(WORKDIR, weights='int8')" in cells['ask'].source and 'weights int8' in cells['next'].source  # 7B fits
  assert 'adapter_config.json' in printed(cells['export']) and 'adapter_model.safetensors' in printed(cells['export'])
  assert json.loads((folder / 'adapter/adapter_config.json').read_text())['r'] == 16
  assert json.loads((folder / 'adapter/generation_config.json').read_text())['eos_token_id']


def check_sharding(cells, folder):
  losses = {}
  for mesh in ('fsdp=8', 'fsdp=4,tensor=2'):
    lines = [json.loads(line) for line in (folder / 'sharding' / mesh / 'metrics.jsonl').read_text().splitlines()]
    losses[mesh] = [line['loss'] for line in lines if 'loss' in line]
  assert len(losses['fsdp=8']) == 6 and losses['fsdp=8'] == pytest.approx(losses['fsdp=4,tensor=2'], rel=1e-5)
  assert "{'data': 1, 'fsdp': 4, 'context': 1, 'tensor': 2}" in printed(cells['generate'])


CHECKS = {
  'finetune': check_finetune,
  'generate': check_generate,
  'evaluate': check_evaluate,
  'convert': check_convert,
  'qlora': check_qlora,
  'sharding': check_sharding,
}


@pytest.mark.parametrize('name', FIGURES)
def test_run(name, folder, compiled_once, monkeypatch):
  cells = run(name, folder, compiled_once, monkeypatch)
  CHECKS[name](cells, folder)
  sizes = figures(cells)
  assert len(sizes) == FIGURES[name] and all(width > 600 and height > 150 for width, height in sizes)
  assert not (folder / 'mathqwen-src').exists()  # the package was here: nothing was fetched
