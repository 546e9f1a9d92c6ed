"""Every flag and setting that names a path, found in the parser and in the settings, so that none is forgotten."""

import argparse
import itertools
import json
import pathlib
import re
import shutil

import pytest
from leftovers import left_in

import mathqwen
from mathqwen import api, cli
from mathqwen.commands import _flags
from mathqwen.config import SETTINGS
from mathqwen.errors import UserError

# Texts that are no paths, by the name of the flag. A new flag that takes text belongs here, or gets a type that checks
# its scheme: `type=_flags.path` or `type=_flags.model_path`.
NOT_PATHS = {
  '--beam', '--benchmark', '--benchmarks', '--distributed', '--evaluate', '--fits', '--layout', '--map', '--prompt',
  '--rule', '--set', '--slice', '--system', '--test-sets', '--topology', 'names', 'questions',
}  # fmt: skip
SETTINGS_NOT_PATHS = {'data.columns', 'data.system_prompt'}
# What the other arguments of a command are while one of its paths is tried: nothing that exists.
OTHERS = {'--benchmarks': 'arithmetic', '--benchmark': 'arithmetic', '--topology': 'v5e-1', 'names': 'gsm8k'}
# A path that pathlib would turn into a folder here, whatever it is given to.
SCHEMES = ['s3://bucket/x', 'gs:/bucket/x', 'gcs://bucket/x', 'file:///x', 'x/gs://bucket']


def commands(parser=None, words=()):
  """[(words, action of each argument)] of every command and verb."""
  parser = parser or cli.build_parser()
  below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
  if not below:
    return [(words, parser._actions)]
  found = [commands(each, (*words, name)) for action in below for name, each in action.choices.items()]
  return list(itertools.chain.from_iterable(found))


def name_of(action):
  return action.option_strings[0] if action.option_strings else action.dest


def takes_text(action):
  return action.nargs != 0 and not action.choices and action.type in (None, str, _flags.path, _flags.model_path)


def is_path(action):
  return action.type in (_flags.path, _flags.model_path)


PATHS = [(words, action, actions) for words, actions in commands() for action in actions if is_path(action)]
IDS = [' '.join([*words, name_of(action)]) for words, action, _ in PATHS]


def test_each_argument_of_text_is_a_path_or_is_not():
  for words, actions in commands():
    for action in filter(takes_text, actions):
      where = f'{" ".join(words)} {name_of(action)}'
      assert is_path(action) != (name_of(action) in NOT_PATHS or words[0] == 'bench'), where
  for name, setting in SETTINGS.items():
    if 'str' in str(setting.kind) and not setting.choices:
      assert bool(setting.path) != (name in SETTINGS_NOT_PATHS), name
  assert len(PATHS) >= 25


def command_line(words, action, actions, value):
  """The command with `value` for this argument, and something that does not exist for the others that it needs."""
  line = list(words)
  for other in actions:
    name = name_of(other)
    if other is action:
      given = value
    elif other.required or name in ('--workdir', '--topology'):
      given = OTHERS.get(name, 'nothing-here')
    else:
      continue
    line += [name, given] if other.option_strings else [given]
  return line


@pytest.mark.parametrize('words, action, actions', PATHS, ids=IDS)
def test_an_unknown_scheme_is_refused_before_anything_is_made(words, action, actions, nowhere, fails):
  for value in SCHEMES:
    line = fails(*command_line(words, action, actions, value))
    assert re.search(r'\w+: is not a scheme that is read or written here', line), line
  assert left_in(nowhere) == []


@pytest.mark.parametrize('name', [name for name, setting in SETTINGS.items() if setting.path])
def test_so_is_one_in_a_setting(name, nowhere, fails):
  for value in SCHEMES:
    for command in (['train', 'demo', '--workdir', 'run'], ['plan', 'demo', '--topology', 'v5e-1']):
      line = fails(*command, '--set', f'{name}={value}')
      assert line.startswith(f'{name}: {value}: ')
  assert left_in(nowhere) == []


MISSING_BUCKET = 'gs://no-such-bucket/x'


@pytest.mark.parametrize('words, action, actions', PATHS, ids=IDS)
def test_a_url_makes_no_local_folder(words, action, actions, nowhere, bucket, tiny, trained, monkeypatch, capsys):
  """Run with a bucket that does not exist and with real files for the other arguments: status 2, and nothing here."""
  real = {
    'config': tiny.config, '--benchmarks': 'arithmetic', '--benchmark': 'arithmetic', '--topology': 'v5e-1',
    'names': 'gsm8k', 'model': trained, '--workdir': f'{bucket}/run', 'source': trained, 'target': f'{bucket}/target',
    'a': f'{bucket}/a', 'b': f'{bucket}/b', 'scores': f'{bucket}/scores', '--data-dir': tiny.data_dir,
    '--out': f'{bucket}/out', '--model': trained, '--set': 'train.steps=6',
  }  # fmt: skip
  if '--data-dir' in map(name_of, actions):
    real['config'] = 'gsm8k_small'  # which reads it
  if words[0] == 'grade':
    record = nowhere.parent / 'records.jsonl'
    record.write_text('{"id": "a", "question": "q", "response": "#### 1", "gold": "1"}\n')
    real |= {'records': record, '--against': 'gsm8k'}
  if words == ('data', 'augment'):
    real |= {'source': tiny.train, '--rule': 'math401'}
  if words == ('data', 'verify'):  # a run whose data has a name, so that it reads --data-dir
    real['workdir'] = nowhere.parent / 'named'
    shutil.copytree(trained, real['workdir'])
    experiment = json.loads((trained / 'experiment.json').read_text())
    experiment['data']['sources'] = ['gsm8k']
    (real['workdir'] / 'experiment.json').write_text(json.dumps(experiment))
  monkeypatch.setenv('MATHQWEN_CACHE', str(nowhere.parent / 'cache'))
  line = list(words)
  optional = {'--workdir', '--data-dir', '--out', '--topology'}
  if words == ('data', 'augment'):
    optional = {'--rule'}  # a file reads no --data-dir
  if words[0] == 'grade':  # of --against
    optional = {'--out', '--against'} if name_of(action) == '--data-dir' else {'--out'}
  if name_of(action) == '--page':  # written last, so the data must be there
    real['config'] = tiny.config
    optional.discard('--data-dir')
  if name_of(action) != '--reproduce':  # which takes its config from a checkpoint
    optional.add('config')
  for other in actions:
    name = name_of(other)
    if other is action:
      given = MISSING_BUCKET
    elif other.required or name in optional or (words[0] == 'demo' and name == '--steps'):
      given = real.get(name, '2')
    else:
      continue
    line += [name, str(given)] if other.option_strings else [str(given)]
  status = cli.main(line)
  printed = capsys.readouterr()
  assert status == 2 and len(printed.err.splitlines()) < 12 and 'Traceback' not in printed.err, printed.err
  assert 'no-such-bucket' in printed.err.splitlines()[-1] or 'bucket-' in printed.err.splitlines()[-1], printed.err
  assert left_in(nowhere) == []
  assert [path for path in pathlib.Path(nowhere.parent).rglob('*:*') if path.name.split(':')[0] in ('gs', 's3')] == []


@pytest.mark.parametrize('value', ['s3://bucket/x', pathlib.Path('gs://bucket/x')], ids=['s3', 'pathlib'])
def test_the_python_face(value, nowhere):
  for call in (
    lambda: api.train('demo', value),
    lambda: api.train('demo', 'run', init=value),
    lambda: api.train('demo', 'run', data_dir=value),
    lambda: api.train(value, 'run'),
    lambda: api.train('demo', 'run', settings={'data.sources': (str(value),)}),
    lambda: api.evaluate(value, 'arithmetic'),
    lambda: api.evaluate('run', 'arithmetic', out=value),
    lambda: api.evaluate('run', 'arithmetic', data_dir=value),
    lambda: mathqwen.load(value),
    lambda: mathqwen.load_tokenizer(value),
  ):
    with pytest.raises(UserError, match='is not a scheme that is read or written here'):
      call()
  assert left_in(nowhere) == []


def test_only_one_module_knows_about_schemes():
  """No other file of the package looks for '://'; addresses of the web are whole strings. Orbax takes epaths."""
  package = pathlib.Path(mathqwen.__file__).parent
  found = []
  for path in sorted(package.rglob('*.py')):
    if path.parent.name == 'files':
      continue
    for number, line in enumerate(path.read_text().splitlines(), 1):
      if re.search(r"""(['"])(\w*)://\1""", line) or re.search(r'\bepath\b', line) and path.parent.name != 'storage':
        found.append(f'{path.relative_to(package)}:{number}')
  assert found == []
