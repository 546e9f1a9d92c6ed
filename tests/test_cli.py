"""The command line as a user meets it: what is wrong is said in one line with a remedy and status 2."""

import errno
import gzip
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from mathqwen import cli

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def fails(capsys):
  """fails('train', ...) -> the error: the last line on stderr, the only one with the program's name."""

  def run(*command):
    status = cli.main([str(word) for word in command])
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert status == 2, said
    assert [line.startswith('mathqwen: ') for line in lines] == [False] * (len(lines) - 1) + [True], lines
    assert 'Traceback' not in said.err
    return lines[-1].removeprefix('mathqwen: ')

  return run


def subprocess_main(*command, env=None, **kwargs):
  words = [sys.executable, '-m', 'mathqwen', *map(str, command)]
  return subprocess.run(words, cwd=ROOT, env={**os.environ, **(env or {})}, capture_output=True, text=True, **kwargs)


# --- the words of the command ---


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
def test_words(fails, tmp_path, monkeypatch, command, message):
  monkeypatch.chdir(tmp_path)
  assert message in fails(*command)
  assert not list(tmp_path.iterdir())  # nothing was begun


def test_help_and_parse_errors_do_without_jax():
  """Every module that is loaded is named by -X importtime."""
  words = [sys.executable, '-X', 'importtime', '-m', 'mathqwen']
  for command, status in [(['--help'], 0), (['train', '--help'], 0), (['train', 'dem', '--workdir', 'x'], 2)]:
    done = subprocess.run([*words, *command], cwd=ROOT, capture_output=True, text=True)
    loaded = {line.split('|')[-1].strip() for line in done.stderr.splitlines() if line.startswith('import time:')}
    assert done.returncode == status
    assert 'mathqwen.cli' in loaded
    assert not loaded & {'jax', 'flax', 'orbax', 'grain', 'numpy', 'tensorflow_datasets', 'sympy'}


# --- training ---


@pytest.fixture
def train(fails, tiny, tmp_path):
  """train('data.seq_len=5') -> the error of a run in tmp_path/run with these settings."""

  def run(*settings, workdir=None, options=()):
    words = [word for setting in settings for word in ('--set', setting)]
    return fails('train', tiny.config, '--workdir', workdir or tmp_path / 'run', *options, *words)

  return run


def test_data_files(train, tiny, tmp_path):
  whole = pathlib.Path(tiny.train).read_bytes()
  files = {
    'cut.jsonl.gz': gzip.compress(whole)[:-20],
    'cut.jsonl': whole[:-20],
    'schema.jsonl': b'{"prompt": "1+1=", "completion": "2"}\n',
    'empty.jsonl': b'',
    'latin.jsonl': '{"query": "é", "response": "1"}\n'.encode('latin-1'),
  }
  for name, content in files.items():
    (tmp_path / name).write_bytes(content)
  message = lambda name: train(f'data.sources={tmp_path / name}')
  assert message('none.jsonl') == f'cannot read {tmp_path}/none.jsonl: No such file or directory; check the path'
  assert message('cut.jsonl.gz').startswith(f'{tmp_path}/cut.jsonl.gz is half-written or damaged')
  assert message('cut.jsonl').startswith(f'{tmp_path}/cut.jsonl:168: the last line is half-written')
  said = message('schema.jsonl')
  assert 'fields found: prompt, completion; expected: {question, answer|solution}' in said
  assert message('empty.jsonl').startswith(f'{tmp_path}/empty.jsonl is empty; fetch or write it again')
  assert message('latin.jsonl').startswith(f'{tmp_path}/latin.jsonl:1: not UTF-8; save it as UTF-8')
  (tmp_path / 'folder').mkdir()
  assert message('folder').startswith(f'cannot read {tmp_path}/folder: Is a directory')


def test_named_data_that_is_not_there(train, tmp_path):
  assert "unknown data set 'gsm8': the names are gsm8k" in train('data.sources=gsm8')
  said = train('data.sources=gsm8k', options=['--data-dir', str(tmp_path)])
  assert said.startswith(f'no gsm8k train data in {tmp_path}: tried gsm8k/train.jsonl')


def test_sizes(train):
  assert train('data.seq_len=97') == (
    "data.seq_len 97 is above the model's max_position_embeddings 96: set data.seq_len=96 or less"
  )
  assert train('data.batch_size=6', 'train.micro_batches=4').endswith('set train.micro_batches=3')
  assert train('mesh.fsdp=3').startswith("mesh {'data': 1, 'fsdp': 3, 'context': 1, 'tensor': 1} does not divide the")
  assert train('model.vocab_size=1000') == (
    'the tokenizer knows 1024 tokens and model.vocab_size is 1000: set model.vocab_size=1024 or more'
  )
  said = train('data.seq_len=10')
  assert said.startswith('no example to train on: 168 too_long: train.jsonl:1 (1') and 'seq_len is 10' in said
  assert train('data.eval_examples=500').endswith('lower data.eval_examples')


def test_batch_and_devices():
  """Two devices cannot share one row; said by a process with two devices."""
  code = (
    'from mathqwen import config\nfrom mathqwen.errors import UserError\n'
    'from mathqwen.training.prepare import TrainingRun\n'
    'e = config.override(config.load("demo"), ["data.batch_size=3", "data.eval_examples=0"])\n'
    'try: TrainingRun.prepare(e)\nexcept UserError as error: print(error)'
  )
  env = {
    **os.environ,
    'XLA_FLAGS': os.environ['XLA_FLAGS'] + ' --xla_force_host_platform_device_count=2',
    'JAX_PLATFORMS': 'cpu',
  }
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=env, capture_output=True, text=True)
  assert done.stdout == (
    'data.batch_size 3 in 1 micro-batches is not divisible by the 2 devices of mesh.data x mesh.fsdp: '
    'set data.batch_size=4\n'
  )


def test_starting_models(train, tmp_path):
  said = train(options=['--init', str(tmp_path / 'none')])
  assert said == f'no model at {tmp_path}/none: give a Hugging Face directory, or the --workdir of a run'
  (tmp_path / 'empty').mkdir()
  assert 'holds neither config.json' in train(options=['--init', str(tmp_path / 'empty')])
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('where', ['file', 'file/below', '/proc/none'])
def test_workdirs_that_cannot_be(train, tmp_path, where):
  (tmp_path / 'file').write_text('x')
  assert train(workdir=tmp_path / where).endswith('use a directory that can be written')
  assert (tmp_path / 'file').read_text() == 'x'


def test_workdir_without_permission(train, tmp_path, monkeypatch):
  def refuse(path, *_, **__):
    raise PermissionError(errno.EACCES, 'Permission denied', str(path))

  monkeypatch.setattr(os, 'makedirs', refuse)  # a test that runs as root is refused nothing
  assert train() == f'--workdir {tmp_path}/run: Permission denied; use a directory that can be written'


def test_a_diverged_run_says_where_it_stopped(train, tiny, tmp_path, monkeypatch):
  import jax

  from mathqwen.training import loop

  add = loop.Meter.add
  monkeypatch.setattr(
    loop.Meter,
    'add',
    lambda self, step, metrics: add(
      self, step, metrics | ({'loss_sum': jax.numpy.float32('nan')} if step == 16 else {})
    ),
  )
  said = train()
  assert said.startswith('the loss is nan at step 18: lower optim.learning_rate or look at the data')
  assert said.endswith(f'the newest checkpoint in {tmp_path}/run is of step 14')


def test_train_json(trained, tiny, capsys):
  assert cli.main(['train', tiny.config, '--workdir', str(trained), '--json']) == 0
  said = json.loads(capsys.readouterr().out.splitlines()[-1])
  wanted = (
    'step loss tokens_per_second loss_tokens_per_second step_seconds packing_efficiency peak_rss_bytes checkpoint'
  )
  assert set(wanted.split()) <= set(said)
  assert (said['step'], said['checkpoint']) == (20, f'{trained}/checkpoints/20')
  assert 0 < said['packing_efficiency'] <= 1 and said['peak_rss_bytes'] > 10**7
  assert said['mfu'] is None  # a CPU has no published peak
  # Of this process, which had nothing left to do.
  assert (said['compile_seconds'], said['input_seconds'], said['goodput']) == (0, 0, 0)
  assert 0 < said['checkpoint_seconds'] < said['total_seconds']


def test_dry_run(tiny, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert cli.main(['train', tiny.config, '--dry-run', '--json', '--init', 'random']) == 0
  lines = capsys.readouterr().out.splitlines()
  # 1024 x 32 embedding; 2 layers of 2 x 32 norms, 32 x (32 + 16 + 16) + 64 attention in, 32 x 32 out, 3 x 32 x 64;
  # one norm
  layer = 2 * 32 + 32 * 64 + 64 + 32 * 32 + 3 * 32 * 64
  parameters = 1024 * 32 + 2 * layer + 32
  assert f'parameters: {parameters:,}' in lines
  numbers = json.loads(lines[-1])
  assert numbers['parameters'] == parameters and numbers['weights_bytes'] == 4 * parameters
  assert numbers['moments_bytes'] >= 2 * numbers['weights_bytes']
  text = '\n'.join(lines)
  assert 'activations, gradients and other temporaries' in text and 'GiB in all' in text
  row = text[text.index('row of 64 positions') :]
  assert '<|im_start|>user\n' in row and '[[' in row and '<|im_end|>]]' in row
  assert not list(tmp_path.iterdir())


# --- models ---


@pytest.mark.parametrize(
  'command',
  [
    ['evaluate', 'MODEL', '--benchmarks', 'arithmetic'],
    ['generate', 'MODEL', '1'],
    ['convert', 'to-hf', 'MODEL', 'new'],
  ],
  ids=lambda command: command[0],
)
def test_what_is_no_model(fails, tiny, tmp_path, monkeypatch, command):
  from mathqwen import config
  from mathqwen.storage import checkpoint

  monkeypatch.chdir(tmp_path)
  (tmp_path / 'file').write_text('x')
  (tmp_path / 'empty').mkdir()
  checkpoint.claim('begun', config.load(tiny.config))
  for path, message in [
    ('none', 'no model at none: give a Hugging Face directory, or the --workdir of a run'),
    ('file', 'no model at file: give a Hugging Face directory, or the --workdir of a run'),
    ('empty', 'empty holds neither config.json (Hugging Face) nor experiment.json (a run of ours): give a'),
    ('begun', 'begun holds no finished checkpoint yet: let `mathqwen train` save one first'),
  ]:
    assert fails(*(path if word == 'MODEL' else word for word in command)).startswith(message)


@pytest.fixture
def unread(monkeypatch):
  """Weights must not be read before the arguments are found to be right."""
  from mathqwen.storage import checkpoint

  def refuse(*_):
    raise AssertionError('weights were read')

  monkeypatch.setattr(checkpoint.Checkpoints, 'restore_params', refuse)


@pytest.mark.parametrize(
  'options, message',
  [
    (['--limit', '0'], 'limit is 0; it must be 1 or more'),
    (['--batch-size', '0'], 'batch_size is 0; it must be 1 or more'),
    (['--max-new-tokens', '0'], 'max_new_tokens is 0; it must be 1 or more'),
    (['--max-new-tokens', '96'], 'with 96 new ones it passes the 96 positions; at most'),
    (['--data-dir', 'none'], 'no arithmetic test data in none: tried arithmetic/test.jsonl'),
    (['--benchmarks', 'gsm8k'], 'no gsm8k test data in'),
    (['--out', 'file'], 'file/arithmetic: Not a directory; a file stands where a directory is needed'),
  ],
)
def test_evaluate(fails, unread, trained, tiny, tmp_path, monkeypatch, options, message):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'file').write_text('x')
  said = fails('evaluate', trained, '--benchmarks', 'arithmetic', '--data-dir', tiny.data_dir, *options)
  assert message in said


@pytest.mark.parametrize(
  'options, message',
  [
    (['--temperature', '-1'], 'temperature -1.0 is not a number of at least 0: 0 is greedy'),
    (['--temperature', 'nan'], 'temperature nan is not'),
    (['--top-p', '0'], 'top_p 0.0 is not in (0, 1]'),
    (['--top-k', '-1'], 'top_k -1 is below 0'),
    (['--seed', '-1'], 'seed is -1: it must be from 0'),
    (['--seed', '99999999999999999999'], 'seed is 99999999999999999999: it must be from 0'),
    (['--max-new-tokens', '0'], 'max_new_tokens is 0: it must be at least 1'),
    (['--max-new-tokens', '96'], "above the model's max_position_embeddings 96: set max_new_tokens to at most"),
    (['1' * 200], "above the model's max_position_embeddings 96: shorten the prompt"),
  ],
)
def test_generate(fails, unread, trained, options, message):
  assert message in fails('generate', trained, '11+3=', *options)


def test_generate_answers(trained, capsys):
  assert cli.main(['generate', str(trained), '11+3=', '12+4=', '--json']) == 0
  lines = capsys.readouterr().out.splitlines()
  answers = json.loads(lines[-1])['answers']
  assert len(answers) == 2 and '\n'.join(answers) == '\n'.join(lines[:-1])


def test_convert(fails, unread, trained, tmp_path):
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'kept').write_text('x')
  assert fails('convert', 'to-hf', trained, tmp_path / 'full') == f'{tmp_path}/full is not empty: name a new directory'
  assert fails('convert', 'to-hf', trained, tmp_path / 'full' / 'kept').endswith('kept is a file: name a new directory')
  assert (tmp_path / 'full' / 'kept').read_text() == 'x'


# --- scores ---


@pytest.fixture(scope='module')
def evaluated(trained, tiny, tmp_path_factory):
  """(the object that `evaluate --json` prints, its --out)."""
  out = tmp_path_factory.mktemp('scores') / 'out'
  command = ['evaluate', trained, '--benchmarks', 'arithmetic', '--data-dir', tiny.data_dir, '--limit', '4', '--json']
  done = subprocess_main(*command, '--out', out, env=tiny.env)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1]), out


KEYS = {'n', 'correct', 'accuracy', 'stderr', 'unextractable', 'truncated', 'rule', 'prompt'}


def test_evaluate_json(evaluated, trained):
  said, out = evaluated
  assert said['tokens_per_second'] > 0
  scores = said['benchmarks']['arithmetic']
  assert set(scores) >= KEYS
  assert (scores['n'], scores['prompt'], scores['rule']) == (4, 'chatml', 'math401')
  assert scores['model'] == f'{trained}/checkpoints/20'
  assert scores == json.loads((out / 'arithmetic' / 'scores.json').read_text())


def test_evaluate_samples(trained, tiny, tmp_path, fails, capsys):
  command = ['evaluate', trained, '--benchmarks', 'arithmetic', '--data-dir', tiny.data_dir, '--limit', '3', '--json']
  command += ['--max-new-tokens', '5', '--samples', '4', '--temperature', '1.5', '--cache-dtype', 'int8']
  command = [str(word) for word in command]
  assert cli.main([*command, '--out', str(tmp_path / 'a')]) == 0
  whole = json.loads(capsys.readouterr().out.splitlines()[-1])['benchmarks']['arithmetic']
  assert (whole['n'], whole['problems'], list(whole['pass_at_k'])) == (12, 3, ['1', '2', '4'])
  records = (tmp_path / 'a' / 'arithmetic' / 'records.jsonl').read_text().splitlines()
  assert len({json.loads(line)['response'] for line in records}) > 3
  # Stopped in between, the rest is drawn as it would have been.
  (tmp_path / 'b' / 'arithmetic').mkdir(parents=True)
  for name, text in {'records.jsonl': '\n'.join(records[:5]) + '\n', 'settings.json': None}.items():
    source = tmp_path / 'a' / 'arithmetic' / name
    (tmp_path / 'b' / 'arithmetic' / name).write_text(source.read_text() if text is None else text)
  assert cli.main([*command, '--out', str(tmp_path / 'b')]) == 0
  capsys.readouterr()
  assert (tmp_path / 'b' / 'arithmetic' / 'records.jsonl').read_text().splitlines() == records
  assert 'samples at temperature 0 are all the same' in fails('evaluate', *command[1:6], '--samples', '4')


def test_another_checkpoint_is_another_run(fails, evaluated, trained, tiny):
  _, out = evaluated
  said = fails(
    'evaluate', trained / 'checkpoints' / '7', '--benchmarks', 'arithmetic', '--data-dir', tiny.data_dir,
    '--limit', '4', '--out', out,
  )  # fmt: skip
  assert f"model '{trained}/checkpoints/20' there and '{trained}/checkpoints/7' now" in said
  assert said.endswith('give another --out, or delete it')


def test_grade_json(evaluated, capsys):
  said, out = evaluated
  assert cli.main(['grade', str(out / 'arithmetic' / 'records.jsonl'), '--benchmark', 'arithmetic', '--json']) == 0
  again = json.loads(capsys.readouterr().out.splitlines()[-1])['benchmarks']['arithmetic']
  assert set(again) >= KEYS
  assert {key: again[key] for key in KEYS} == {key: said['benchmarks']['arithmetic'][key] for key in KEYS}


@pytest.mark.parametrize(
  'text, message',
  [
    (None, 'no such file; give a records.jsonl'),
    ('', 'no records in it; give the records.jsonl of an evaluation'),
    ('rubbish\n{}\n', ':1: not JSON'),
    ('[]\n', ':1: a record is a JSON object, not list'),
    ('{"id": "a", "response": "3"}\n', ":1: field 'gold' is missing"),
    ('{"id": "a", "response": 3, "gold": "3"}\n', ":1: field 'response' is int; it must be text"),
    ('{"response": "3", "gold": "3"}\n', ":1: field 'id' or 'question' is needed"),
  ],
)
def test_grade(fails, tmp_path, text, message):
  path = tmp_path / 'records.jsonl'
  if text is not None:
    path.write_text(text)
  said = fails('grade', path, '--benchmark', 'gsm8k', '--out', tmp_path / 'out')
  assert said.startswith(str(path)) and message in said
  assert not (tmp_path / 'out').exists()


def test_grade_names(fails, evaluated):
  path = evaluated[1] / 'arithmetic' / 'records.jsonl'
  assert "unknown benchmark 'gsm8'; did you mean 'gsm8k'?" in fails('grade', path, '--benchmark', 'gsm8')
  assert "unknown rule 'numbr'; did you mean 'number'?" in fails(
    'grade', path, '--benchmark', 'gsm8k', '--rule', 'numbr'
  )


def test_table(fails, evaluated, tmp_path, capsys):
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'no.json').write_text('{"a": 1}')
  (tmp_path / 'half.json').write_text('{"benchm')
  for path, message in [
    ('empty', 'no scores.json below it; give the --out directory of an evaluation'),
    ('none', 'no such file'),
    ('no.json', "field 'benchmark' is missing; evaluate or grade again to write it"),
    ('half.json', 'not JSON'),
  ]:
    said = fails('table', tmp_path / path)
    assert said.startswith(f'{tmp_path / path}: {message}')
  assert cli.main(['table', str(evaluated[1])]) == 0
  assert 'Math-Qwen-Chat' in capsys.readouterr().out


# --- the machine ---


@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_anywhere(fails, evaluated, tmp_path, monkeypatch, code):
  def full(*_):
    raise OSError(code, os.strerror(code), str(tmp_path / 'records.jsonl'))

  monkeypatch.setattr('mathqwen.evals.records.write_all', full)
  path = evaluated[1] / 'arithmetic' / 'records.jsonl'
  said = fails('grade', path, '--benchmark', 'arithmetic', '--out', tmp_path)
  assert said.startswith(f'{tmp_path}/records.jsonl: {os.strerror(code)}; free some')
  assert said.endswith('run the same command again')


def test_our_own_defects_are_not_dressed_up(monkeypatch):
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
  monkeypatch.setattr(cli.atexit, 'register', lambda *call: ended.append(call))
  for status, exits in ((130, [(os._exit, 130)]), (2, []), (0, [])):
    ended.clear()
    monkeypatch.setattr(cli, 'main', lambda status=status: status)
    with pytest.raises(SystemExit) as left:
      cli.program()
    assert (ended, left.value.code) == (exits, status)


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
