"""The command line as a user meets it: an error is one line with a remedy, and a status."""

import argparse
import errno
import importlib.metadata
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

import mathqwen
from mathqwen import cli
from mathqwen.hardware import hosts

ROOT = pathlib.Path(__file__).parents[2]


def subprocess_main(*command, env=None, **kwargs):
  words = [sys.executable, '-m', 'mathqwen', *map(str, command)]
  return subprocess.run(words, cwd=ROOT, env={**os.environ, **(env or {})}, capture_output=True, text=True, **kwargs)


@pytest.mark.parametrize(
  'command, message',
  [
    ([], 'the following arguments are required: COMMAND (see mathqwen --help)'),
    (['frobnicate'], "invalid choice: 'frobnicate' (choose from"),
    (['train'], 'the following arguments are required: CONFIG (see mathqwen train --help)'),
    (['train', 'demo', '--worddir', 'x'], 'unrecognized arguments: --worddir x'),
    (['train', 'demo'], 'train needs --workdir DIR'),
    (['train', 'dem', '--workdir', 'x'], "no config 'dem': known are"),
    (['train', 'none.py', '--workdir', 'x'], 'no config file none.py: give the path'),
    (['train', 'demo', '--workdir', 'x', '--set', 'train.steps'], 'write it as name=value, for example'),
    (['train', 'demo', '--workdir', 'x', '--set', 'train.step=5'], "did you mean 'train.steps'?"),
    (
      ['train', 'demo', '--workdir', 'x', '--set', 'train.steps=1.5'],
      '--set train.steps=1.5: it must be a whole number',
    ),
    (['evaluate', 'x'], 'the following arguments are required: --benchmarks'),
    (['evaluate', 'x', '--benchmarks', 'gsm8'], "unknown benchmark 'gsm8'; did you mean 'gsm8k'? there are: gsm8k"),
    (['evaluate', 'x', '--benchmarks', ''], 'benchmarks is empty; give a value'),
    (['evaluate', 'x', '--benchmarks', 'gsm8k', '--out', ''], 'out is empty; give a value'),
    (['train', 'demo', '--workdir', ''], 'workdir is empty; give a value'),
    (['table', ''], 'scores is empty; give a value'),
    (['evaluate', 'x', '--benchmarks', 'gsm8k', '--prompt', 'vicuna'], "unknown prompt 'vicuna'; there are: chatml"),
    (['evaluate', 'x', '--benchmarks', 'gsm8k', '--limit', 'few'], "argument --limit: invalid int value: 'few'"),
    (['evaluate', 'x', '--benchmarks', 'gsm8k', '--dtype', 'int4'], "invalid choice: 'int4' (choose from 'bfloat16'"),
    (['generate', 'x', '1+1=', '--dtype', 'float8'], "invalid choice: 'float8'"),
    (['generate', 'x', '1+1=', '--temperature', 'hot'], "argument --temperature: invalid float value: 'hot'"),
    (['grade', 'x'], 'the following arguments are required: --benchmark'),
    (['data'], 'the following arguments are required: prepare|inspect'),
    (['data', 'prepare', 'gsm8'], "unknown data set 'gsm8': the names are gsm8k"),
  ],
)
def test_messages(fails, tmp_path, monkeypatch, command, message):
  monkeypatch.chdir(tmp_path)
  assert message in fails(*command)
  assert not list(tmp_path.iterdir())  # nothing was started


def every_parser(parser):
  """`parser`, and those of its commands and verbs."""
  yield parser
  for action in parser._actions:
    if isinstance(action, argparse._SubParsersAction):
      for below in action.choices.values():
        yield from every_parser(below)


def test_every_command_and_flag_has_a_help():
  parsers = {parser.prog: parser for parser in every_parser(cli.build_parser())}
  files = {path.stem for path in (ROOT / 'mathqwen' / 'commands').glob('[!_]*.py')}
  assert {prog.split()[1] for prog in parsers if ' ' in prog} == files
  assert 'mathqwen convert to-hf' in parsers and len(parsers) > 15
  for prog, parser in parsers.items():
    assert parser.description, prog
    for action in parser._actions:
      if not isinstance(action, argparse._SubParsersAction):
        assert action.help and not action.help.endswith('.'), (prog, action.dest)


def test_version(capsys):
  with pytest.raises(SystemExit) as end:
    cli.main(['--version'])
  assert end.value.code == 0
  assert capsys.readouterr().out == f'mathqwen {mathqwen.__version__}, jax {importlib.metadata.version("jax")}\n'


def test_help_and_parse_errors_do_without_jax():
  """Every module that is loaded is named by -X importtime."""
  program = [sys.executable, '-X', 'importtime', '-m', 'mathqwen']
  for command, status in [
    (['--help'], 0),
    (['train', '--help'], 0),
    (['--version'], 0),
    (['configs'], 0),
    (['train', 'dem', '--workdir', 'x'], 2),
  ]:
    done = subprocess.run([*program, *command], cwd=ROOT, capture_output=True, text=True)
    loaded = {line.split('|')[-1].strip() for line in done.stderr.splitlines() if line.startswith('import time:')}
    assert done.returncode == status
    assert 'mathqwen.cli' in loaded
    assert not loaded & {'jax', 'flax', 'orbax', 'grain', 'numpy', 'tensorflow_datasets', 'sympy'}


@pytest.mark.parametrize(
  'command',
  [
    ['evaluate', 'MODEL', '--benchmarks', 'arithmetic'],
    ['generate', 'MODEL', '1'],
    ['convert', 'to-hf', 'MODEL', 'new'],
  ],
  ids=lambda command: command[0],
)
def test_paths_without_a_model(fails, tiny, tmp_path, monkeypatch, command):
  from mathqwen import config
  from mathqwen.storage import workdir

  monkeypatch.chdir(tmp_path)
  (tmp_path / 'file').write_text('x')
  (tmp_path / 'empty').mkdir()
  workdir.claim('started', config.load(tiny.config))
  (tmp_path / 'trainer' / 'checkpoint-500').mkdir(parents=True)
  (tmp_path / 'trainer' / 'checkpoint-500' / 'adapter_config.json').write_text('{}')
  for path, message in [
    ('none', 'no model at none: give a Hugging Face directory, or the --workdir of a run'),
    ('file', 'no model at file: give a Hugging Face directory, or the --workdir of a run'),
    ('empty', 'empty holds neither config.json (Hugging Face) nor experiment.json (a run of ours): give a'),
    ('started', 'started holds no finished checkpoint yet: let `mathqwen train` save one first'),
    ('trainer', 'trainer holds neither config.json (Hugging Face) nor experiment.json (a run of ours): give a'),
  ]:
    error = fails(*(path if word == 'MODEL' else word for word in command))
    assert error.startswith(message)
  assert error.endswith('; inside of it are checkpoint-500')


@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_anywhere(fails, evaluated, tmp_path, monkeypatch, code):
  def full(*_):
    raise OSError(code, os.strerror(code), str(tmp_path / 'records.jsonl'))

  monkeypatch.setattr('mathqwen.evals.records.write_all', full)
  path = evaluated[1] / 'arithmetic' / 'records.jsonl'
  error = fails('grade', path, '--benchmark', 'arithmetic', '--out', tmp_path)
  assert error.startswith(f'{tmp_path}/records.jsonl: {os.strerror(code)}; free some')
  assert error.endswith('run the same command again')


def test_defects_of_ours_keep_their_traceback(monkeypatch):
  def broken(args):
    raise OSError(errno.EBADF, 'Bad file descriptor')

  monkeypatch.setattr('mathqwen.commands.table.run', broken)
  with pytest.raises(OSError, match='Bad file'):
    cli.main(['table', 'x'])


def test_an_ascii_terminal(tmp_path):
  environment = os.environ | {'PYTHONIOENCODING': 'ascii'}
  (tmp_path / 'gsm8k').mkdir()
  scores = {'benchmark': 'gsm8k', 'n': 4, 'correct': 1, 'accuracy': 0.25, 'stderr': 0.2, 'rule': 'number'}
  (tmp_path / 'gsm8k' / 'scores.json').write_text(json.dumps(scores))
  words = [sys.executable, '-m', 'mathqwen', 'table', str(tmp_path)]
  done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, timeout=120)
  assert (done.returncode, done.stderr) == (0, b'') and b'| 25.0 ? 20.0 (n = 4) |' in done.stdout


def test_interrupted(monkeypatch, capsys):
  def interrupt(args):
    raise KeyboardInterrupt

  monkeypatch.setattr('mathqwen.commands.table.run', interrupt)
  assert cli.main(['table', 'x']) == 130
  assert capsys.readouterr().err == 'mathqwen: interrupted\n'


def test_an_interrupted_program_ends_at_once(monkeypatch):
  """Once Python's own threads have ended, such as those that save, and before XLA's may crash."""
  ended = []
  monkeypatch.setattr(hosts, '_is_program', False)  # put back afterwards: this process is the tests'
  monkeypatch.setattr(cli.atexit, 'register', lambda *call: ended.append(call))
  monkeypatch.setattr(cli.signal, 'signal', lambda *call: None)
  for status, exits in ((130, [(os._exit, 130)]), (2, []), (0, [])):
    ended.clear()
    monkeypatch.setattr(cli, 'main', lambda status=status: status)
    with pytest.raises(SystemExit) as left:
      cli.program()
    assert (ended, left.value.code) == (exits, status)


def test_ctrl_c_after_a_command_has_ended_changes_nothing():
  """While packages clean up, in which Python shows a traceback of whatever is interrupted."""
  code = (
    'import atexit, os, signal, sys\nfrom mathqwen import cli\nsys.argv[1:] = ["configs"]\n'
    'atexit.register(os.kill, os.getpid(), signal.SIGINT)\ncli.program()'
  )
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (0, '') and done.stdout


def test_an_error_of_several_lines_is_one(fails, monkeypatch):
  from mathqwen.errors import UserError

  def broken(args):
    raise UserError('first\n  second')

  monkeypatch.setattr('mathqwen.commands.table.run', broken)
  assert fails('table', 'x') == 'first second'


def test_no_other_framework_is_loaded(tiny, trained, tmp_path):
  """Training and evaluation in one process, as a user runs them; a traceback would be on stderr."""
  shutil.copytree(trained, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '20')
  code = (
    'import sys\nfrom mathqwen.cli import main\nconfig, workdir, data = sys.argv[1:]\n'
    'assert main(["train", config, "--workdir", workdir]) == 0\n'
    'assert main(["evaluate", workdir, "--benchmarks", "arithmetic", "--data-dir", data, "--limit", "2"]) == 0\n'
    'print(sorted(m for m in ("torch", "transformers", "tensorflow", "jax") if m in sys.modules))'
  )
  words = [sys.executable, '-c', code, tiny.config, str(tmp_path / 'run'), tiny.data_dir]
  done = subprocess.run(words, cwd=ROOT, env={**os.environ, **tiny.env}, capture_output=True, text=True)
  assert done.stdout.splitlines()[-1:] == ["['jax']"], done.stderr


def test_a_process_ends_with_the_status(tmp_path):
  done = subprocess_main('grade', tmp_path / 'none.jsonl', '--benchmark', 'gsm8k')
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr == f'mathqwen: {tmp_path}/none.jsonl: no such file; give a records.jsonl\n'
