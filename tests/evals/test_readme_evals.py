"""mathqwen/evals/README.md: its tables are those of the code, and its commands print what it shows."""

import contextlib
import io
import re
import shlex
import threading
from pathlib import Path

import pytest
from fake_server import Server, status

from mathqwen import cli
from mathqwen.data import catalog
from mathqwen.evals import benchmarks, prompts

ROOT = Path(__file__).parents[2]
README = (ROOT / 'mathqwen' / 'evals' / 'README.md').read_text()
TASKS = (ROOT / 'mathqwen' / 'evals' / 'tasks' / 'README.md').read_text()


def table_after(heading, text=README):
  """The rows of the first table below a heading, without its first two lines."""
  lines = text.split(f'\n## {heading}')[1].splitlines()
  first = next(i for i, line in enumerate(lines) if line.startswith('|'))
  rows = []
  for line in lines[first + 2 :]:
    if not line.startswith('|'):
      break
    rows.append(line)
  return rows


def row(*cells):
  return '| ' + ' | '.join(cells).replace('|  |', '| |') + ' |'


def test_the_benchmarks():
  wanted = []
  for one in benchmarks.BENCHMARKS.values():
    size = f'{one.size:,}' if one.size else 'generated'
    licence = catalog.of_source(one.source).licence
    groups = ', '.join(names[0] for names in one.groups)
    wanted.append(row(f'`{one.name}`', licence, size, f'`{one.rule}`', f'{one.max_new_tokens:,}', groups))
  assert [line.replace('|  |', '| |') for line in wanted] == table_after('The benchmarks', TASKS)


def special(prompt):
  """'gsm8k: `abel`, 2,048': what differs with a prompt; benchmarks with the same settings stand together."""
  names = {}
  for one in benchmarks.BENCHMARKS.values():
    settings = one.by_prompt.get(prompt)
    if settings:
      words = [f'`{settings.rule}`'] if settings.rule else []
      words += [f'{settings.max_new_tokens:,}'] if settings.max_new_tokens else []
      names.setdefault(', '.join(words), []).append(one.name)
  return '; '.join(f'{", ".join(found)}: {words}' for words, found in names.items())


def test_the_prompts():
  wanted = []
  for name, prompt in prompts.PROMPTS.items():
    ends = ', '.join(f'`{stop}`' for stop in prompt.stop).replace('\n', '\\n').replace('|', '\\|')
    wanted.append(row(f'`{name}`', prompt.about, special(name), ends))
  # An empty cell is '| |', also where two follow each other.
  assert [re.sub(r'\|  (?=\|)', '| ', line) for line in wanted] == table_after('Prompts')


def commands():
  """[(command, the lines below it)] of every block that shows output."""
  found = []
  for block in re.findall(r'```\n(\$ .*?)```', README + TASKS, re.DOTALL):
    for part in re.split(r'^\$ ', block, flags=re.MULTILINE)[1:]:
      command, _, output = part.partition('\n')
      found.append((command, output))
  return found


@pytest.fixture
def served(data_dir, tmp_path, monkeypatch):
  """A server where the README's is, which fails on the second problem."""
  one = Server()
  one.script = [None, *[status(500)] * 6]
  threading.Thread(target=one.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True).start()
  monkeypatch.setattr('mathqwen.evals.endpoint.Endpoint._wait_after', lambda *_: 0.001)
  monkeypatch.delenv('OPENAI_API_KEY', raising=False)
  yield one.url
  one.shutdown()
  one.server_close()


def test_the_commands_print_what_is_shown(served, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'tests').symlink_to(ROOT / 'tests')
  shown = commands()
  assert [command.split()[1] for command, _ in shown] == ['grade', 'evaluate', 'grade', 'compare', 'grade']
  for command, wanted in shown:
    words = shlex.split(command.replace('http://127.0.0.1:8000/v1', served))
    words += ['--concurrency', '1'] if words[1] == 'evaluate' else []
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
      cli.main(words[1:])
    lines = printed.getvalue().replace(served, 'http://127.0.0.1:8000/v1').splitlines()
    # The README shows neither progress nor the report of a first try.
    lines = [
      line for line in lines if 'asked again' not in line and 'problems/s' not in line and 'repeated' not in line
    ]
    assert [line for line in lines if line.strip()] == wanted.splitlines(), command


def test_the_example_of_a_new_benchmark_is_a_complete_file(tmp_path, monkeypatch):
  text = re.search(r'```python\n(.*?)```', TASKS, re.DOTALL).group(1)
  (tmp_path / 'mine.py').write_text(text)
  monkeypatch.setenv('MATHQWEN_TASKS', str(tmp_path))
  found = [module.BENCHMARK.name for module in catalog.task_files()]
  assert found == [*benchmarks.BENCHMARKS, 'mine']


def test_the_readme_is_short_and_its_files_exist():
  assert len(README) < 9_000 and len(TASKS) < 6_000
  for name in re.findall(r'`([\w/]+\.py|[\w/]+/)`', README):
    assert (ROOT / 'mathqwen' / 'evals' / name).exists() or (ROOT / name).exists(), name
