"""`mathqwen configs`, configs/README.md, and the commands in the docstrings of configs/*.py."""

import json
import pathlib
import re
import shlex

import pytest

from mathqwen import cli, config
from mathqwen.commands import configs
from mathqwen.settings import to_flat

FOLDER = pathlib.Path(__file__).parents[2] / 'configs'
NAMES = sorted(path.stem for path in FOLDER.glob('*.py'))


def test_readme_is_what_the_settings_declare():
  assert (FOLDER / 'README.md').read_text() == configs.readme(), (
    'configs/README.md differs from the settings: run `python -m mathqwen.commands.configs > configs/README.md`'
  )


def test_readme_has_every_setting_and_experiment():
  text = configs.readme()
  for name in config.SETTINGS:
    assert text.count(f'| `{name}` |') == 1
  for name in NAMES:
    assert f'- `{name}`: ' in text
  assert '| `train.remat` | `full` | text, one of none, dots, gate, mlp, full, nested | yes |' in text
  assert '| `math?asy` | `keep` | text, one of keep, strip, drop | keep: ' in text
  assert '| `arithmetic?count` | `100000` | a whole number, at least 1 | rows |' in text
  assert '| `optim.beta2` | `0.95` | a number, at least 0 and below 1 | no |' in text


def test_list(capsys):
  assert cli.main(['configs', '--json']) == 0
  *lines, last = capsys.readouterr().out.splitlines()
  listed = json.loads(last)['configs']
  assert [entry['name'] for entry in listed] == NAMES
  for line, entry in zip(lines, listed, strict=True):
    docstring = (FOLDER / f'{entry["name"]}.py').read_text().removeprefix('"""')
    assert entry['summary'] == docstring.splitlines()[0] != ''
    assert line.split(maxsplit=1) == [entry['name'], entry['summary']]


def test_all_settings_of_one(capsys):
  assert cli.main(['configs', 'math_qwen_7b', '--json']) == 0
  *lines, last = capsys.readouterr().out.splitlines()
  shown = json.loads(last)
  assert {entry['name']: entry['value'] for entry in shown['settings']} == json.loads(
    json.dumps(to_flat(config.load('math_qwen_7b')))
  )
  assert all(entry['help'] and entry['type'] for entry in shown['settings'])
  assert '  optim.learning_rate = 2e-05' in lines and '  data.sources = gsm8k,math,math23k' in lines
  text = ' '.join(' '.join(lines).split())
  assert 'train.steps = 50000 optimizer steps; at least 1 [may change on resume, when optim.schedule is const' in text
  assert 'mesh.tensor = 1 devices that heads, the width of the MLP and the vocabulary are split over [may c' in text


def test_a_config_given_by_its_path(tiny, capsys):
  assert cli.main(['configs', tiny.config]) == 0
  assert capsys.readouterr().out.startswith('Twenty steps of a model of 30,000 parameters.\n')
  assert cli.main(['configs', 'dem']) == 2
  assert "did you mean 'demo'?" in capsys.readouterr().err


def commands_of(name):
  """The command lines in the docstring of a config."""
  docstring = (FOLDER / f'{name}.py').read_text().split('"""')[1]
  return [shlex.split(line)[1:] for line in re.findall(r'^ *(mathqwen .*)$', docstring, re.MULTILINE)]


@pytest.mark.parametrize('name', NAMES)
def test_commands_of_the_docstrings(name):
  """They parse, and name settings, data and models as the commands look them up."""
  from mathqwen.data import catalog
  from mathqwen.files import hub

  commands = commands_of(name)
  assert commands
  for words in commands:
    args = cli.build_parser().parse_args(words)
    if args.command != 'train':
      continue
    assert args.config == name and args.workdir
    experiment = config.resolve(args.config, args.settings, args.init, args.data_dir)
    # A model on the hub, by the name that the config gives; data as `data prepare` stores them.
    assert args.init is None or hub.name_of(args.init) == args.init == config.load(name).init
    assert args.data_dir is None
    assert set(experiment.data.sources) <= set(catalog.prepared())


GSM8K = [{'question': f'What is {n} + {n}?', 'answer': f'It is {2 * n}.\n#### {2 * n}'} for n in range(400)]


def test_first_commands_run(tmp_path, monkeypatch, capsys):
  """Those of a config that fits here, with a few problems in the place of the download."""
  monkeypatch.setenv('MATHQWEN_CACHE', str(tmp_path / 'cache'))
  monkeypatch.chdir(tmp_path)
  source = tmp_path / 'data' / 'gsm8k'
  source.mkdir(parents=True)
  for split in ('train', 'test'):
    (source / f'{split}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in GSM8K))
  prepare, train = commands_of('gsm8k_small')
  assert cli.main([*prepare, '--data-dir', str(tmp_path / 'data')]) == 0
  assert cli.main([*train, '--dry-run']) == 0
  printed = capsys.readouterr().out
  assert 'gsm8k: train 400, test 400 rows' in printed and 'the first packed row' in printed
  assert not (tmp_path / 'runs').exists()
