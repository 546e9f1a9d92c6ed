"""What the READMEs show is what the commands do: links, commands, and shown output up to numbers that vary.

`python tests/test_readmes.py NAME FILE` compares FILE, the output of a command, with the block that README.md marks
with `<!-- output: NAME -->`. CI does so with the demo, which takes too long for a test.
"""

import json
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
NUMBER = re.compile(r'\d[\d,]*(\.\d+)?')
# What makes a run of `gsm8k_small` small enough for a test. The commands of the README stay as they are, and these
# flags come after them.
SMALL = {
  'train': [
    '--set', 'train.steps=2', '--set', 'optim.warmup_steps=1', '--set', 'data.eval_examples=2',
    '--set', 'data.seq_len=64', '--set', 'data.batch_size=2', '--set', 'model.num_hidden_layers=2',
  ],
  'generate': ['--max-new-tokens', '4'],
  'evaluate': ['--max-new-tokens', '4'],
  'convert': [],
}  # fmt: skip


def readmes() -> list[pathlib.Path]:
  """The Markdown files of the repository, without those that git ignores."""
  listed = subprocess.run(['git', 'ls-files', '--cached', '--others', '--exclude-standard', '*.md'], cwd=ROOT,
                          capture_output=True, text=True, check=True)  # fmt: skip
  return [ROOT / name for name in listed.stdout.split()]


def code_blocks(text: str) -> list[tuple[str, str, str]]:
  """(mark, language, code) of each block; the mark is that of a comment `<!-- ... -->` on the line before, or ''."""
  pattern = re.compile(r'(?:<!-- ([^\n]*) -->\n)?```(\w*)\n(.*?)```', re.DOTALL)
  return [(mark or '', language, code) for mark, language, code in pattern.findall(text)]


def marked(name: str) -> str:
  """The code of the block of README.md that is marked `name`."""
  found = [code for mark, _, code in code_blocks((ROOT / 'README.md').read_text()) if mark == name]
  assert len(found) == 1, f'README.md has {len(found)} blocks marked {name!r}'
  return found[0]


def commands(code: str) -> list[str]:
  """The lines of a block that call mathqwen, without the prompt; lines that end with a backslash are joined."""
  lines = [line.removeprefix('$ ') for line in code.replace('\\\n', ' ').splitlines()]
  # shlex would take the # inside openai:URL#MODEL for a comment, too.
  return [re.sub(r'\s+#.*', '', line) for line in lines if line.startswith('mathqwen ')]


def shape(line: str) -> str:
  """The line with every number as # and every run of spaces or dashes as one."""
  return re.sub(r'-+', '-', re.sub(r'\s+', ' ', NUMBER.sub('#', line))).strip()


def missing_line(shown: str, output: str) -> str | None:
  """The first line of `shown` that `output` does not have, in order; None when it has all.

  A line `...` in `shown` stands for any lines; without it, lines follow each other directly. Commands (`$ ...`) are not
  compared.
  """
  lines = [shape(line) for line in output.splitlines() if line.strip()]
  position, skipping = 0, True
  for line in shown.splitlines():
    if not line.strip() or line.startswith('$ '):
      continue
    if line.strip() == '...':
      skipping = True
      continue
    candidates = range(position, len(lines)) if skipping else range(position, min(position + 1, len(lines)))
    at = next((i for i in candidates if lines[i] == shape(line)), None)
    if at is None:
      return line
    position, skipping = at + 1, False
  return None


def test_the_comparison_of_output():
  output = 'a 1\nb 2.5 |----|\n\nc\nd'
  assert missing_line('$ x\na 7\nb 3 |--|\n...\nd', output) is None
  assert missing_line('a 7\nc', output) == 'c'  # b lies between them
  assert missing_line('...\nd\n...\na 1', output) == 'a 1'  # the wrong order
  assert missing_line('a one', output) == 'a one'


def test_the_readme_is_short():
  assert len((ROOT / 'README.md').read_bytes()) <= 10 * 1024


@pytest.mark.parametrize('path', readmes(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
  text = path.read_text()
  assert '../shared' not in text
  for target in re.findall(r'\]\(([^)#\s]+)', text):
    if '://' not in target:
      assert (path.parent / target).exists(), target


@pytest.mark.parametrize('path', readmes(), ids=lambda path: str(path.relative_to(ROOT)))
def test_named_files_exist(path):
  """Paths in backticks, such as `hf/layouts.py`: from the README's own folder, the root, or the package."""
  for name in re.findall(r'`((?:[\w.-]+/)+[\w.-]+\.(?:py|sh|md|toml|ipynb))`', path.read_text()):
    assert any((folder / name).exists() for folder in (path.parent, ROOT, ROOT / 'mathqwen')), name


@pytest.mark.parametrize('path', readmes(), ids=lambda path: str(path.relative_to(ROOT)))
def test_shown_commands_are_understood(path):
  from mathqwen.cli import build_parser

  shown = [line for _, _, code in code_blocks(path.read_text()) for line in commands(code)]
  for line in shown:
    words = shlex.split(line)
    end = next((i for i, word in enumerate(words) if word in ('|', '>', '&', '&&', '2>&1', ';')), len(words))
    assert callable(build_parser().parse_args(words[1:end]).run), line


@pytest.fixture(scope='module')
def mine(tmp_path_factory, compiled_once):
  """A folder in which the four commands of the README have run, on data of the user's."""
  from mathqwen.cli import main

  folder = tmp_path_factory.mktemp('mine')
  rows = [{'question': f'What is {a} + {b}?', 'answer': f'{a} + {b} = {a + b}\n#### {a + b}'}
          for a in range(9) for b in range(9)]  # fmt: skip
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (folder / 'mine.jsonl').write_text(text)
  (folder / 'data' / 'gsm8k').mkdir(parents=True)
  (folder / 'data' / 'gsm8k' / 'test.jsonl').write_text(text)
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    for line in commands(marked('commands: mine')):
      words = shlex.split(line)[1:]
      more = ['--data-dir', 'data'] if words[0] == 'evaluate' else []
      assert main([*words, *SMALL[words[0]], *more]) == 0, line
  return folder


def test_the_commands_on_data_of_the_users(mine):
  assert (mine / 'export' / 'model.safetensors').exists()
  assert json.loads((mine / 'scores' / 'gsm8k' / 'scores.json').read_text())['n'] == 81


def test_the_python_lines(mine, monkeypatch):
  monkeypatch.chdir(mine)
  names = {}
  code = marked('python: mine').replace('max_new_tokens=256', 'max_new_tokens=4')
  exec(compile(code, 'README.md', 'exec'), names)
  assert len(names['answers']) == 1
  assert names['logits'].shape == (1, len(names['ids']), names['model'].config.vocab_size)
  assert len(names['ids']) == len(names['loss_mask'])


if __name__ == '__main__':
  name, file = sys.argv[1:]
  line = missing_line(marked(f'output: {name}'), pathlib.Path(file).read_text())
  if line is not None:
    sys.exit(f'README.md shows a line that the command does not print: {line}')
