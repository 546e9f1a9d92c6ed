"""`mathqwen plan --evaluate`: its arithmetic by hand, and steps of a small model compiled for real slices."""

import importlib.util
import pathlib

import pytest

from mathqwen import cli
from mathqwen.config import Experiment
from mathqwen.evals.benchmarks import get
from mathqwen.hardware import chips
from mathqwen.model.config import PRESETS, ModelConfig
from mathqwen.planning import compiler, evaluation
from mathqwen.planning.evaluation import Asked, Work

GB = 10**9
MINE = str(pathlib.Path(__file__).parents[1] / 'testdata/grading/openai_6b_finetuning_gsm8k.jsonl.gz')
WORK = Work('gsm8k', problems=1319, prompt_tokens=128, answer_tokens=200, max_new_tokens=512)
COMPILED = {
  'decode': {'hbm_bytes': 2 * GB, 'flops': 10**12, 'collectives': 10**6},
  'call': {'hbm_bytes': GB // 2, 'flops': 0, 'collectives': 0},
  'prefill': {'hbm_bytes': 4 * GB, 'flops': 8 * 10**13, 'collectives': GB},
  'insert': {'hbm_bytes': GB // 100, 'flops': 0, 'collectives': 0},
  'memory': {
    'decode': {'arguments': 5 * GB, 'temporaries': GB, 'outputs': 0},
    'prefill': {'arguments': 2 * GB, 'temporaries': GB // 2, 'outputs': GB // 4},
    'insert': {'arguments': 3 * GB, 'temporaries': 0, 'outputs': 0},
  },
  'rows': 64,
  'prefill_rows': 16,
  'mesh': {'data': 1, 'fsdp': 2, 'context': 1, 'tensor': 4},
  'read_bytes': 8 * 16 * GB // 10,
  'compile_seconds': 1.0,
}


def test_times_by_hand():
  host = chips.slice_of('v5e-8')  # 2 x 4: one link of 50 GB/s in each dimension, 819 GB/s, 197 TFLOP/s
  row = evaluation.times(COMPILED, WORK, host, price=1.5)
  # Two slots of 64 have to be free, and one ends every 200 / 64 steps.
  calls = 6.25
  assert row['steps_in_a_call'] == calls and row['moved_bytes_per_step'] == 2 * GB
  assert row['ratio'] == pytest.approx((2 + 0.5 / calls) / 1.6)
  step, start = {'compute': 1 / (8 * 197), 'hbm': 2 / 819, 'ici': 1e-5}, 0.5 / 819
  assert row['bounds_seconds'] == pytest.approx(step)
  assert row['tokens_per_second'] == pytest.approx(64 / (2 / 819 + start / calls))
  assert row['tokens_per_second_serial'] == pytest.approx(64 / (sum(step.values()) + start / calls))
  steps = 200 * (1319 / 64 + 1)
  prefill = 80 / (8 * 197)  # of 83 groups, longer than 4 GB of HBM and 1 GB of ICI
  seconds = steps * (2 / 819 + start / calls) + 83 * prefill + 1319 * 0.01 / 819
  assert row['minutes'] == pytest.approx(seconds / 60)
  assert row['chip_hours'] == pytest.approx(8 * seconds / 3600) and row['price'] == pytest.approx(12 * seconds / 3600)
  # Four hosts, each with a fourth of the problems.
  four = evaluation.times(COMPILED, WORK, host, hosts=4)
  assert four['tokens_per_second'] == pytest.approx(4 * row['tokens_per_second']) and four['price'] is None
  assert four['minutes'] < row['minutes'] / 3 and four['chip_hours'] > row['chip_hours']


def test_memory_by_hand():
  row = evaluation.memory(COMPILED, WORK, chips.slice_of('v5e-8'))
  # 640 positions take 768, and before that there were 512: 3 GB of cache, then 2 GB more while it grows.
  assert WORK.positions == 768
  assert row['hbm_bytes_per_chip'] == (2 + 3 + 2) * GB + GB // 4 + GB and row['fits']
  large = COMPILED | {'memory': COMPILED['memory'] | {'decode': {'arguments': 12 * GB, 'temporaries': 0, 'outputs': 0}}}
  assert not evaluation.memory(large, WORK, chips.slice_of('v5e-8'))['fits']


@pytest.fixture
def compiled(monkeypatch):
  """Stands for the TPU compiler: `compiled.append(result)` in the order of the tries. Keeps what it was asked."""
  says, asked = [], []
  monkeypatch.setattr(compiler, 'check_installed', lambda: None)

  def compile_answers(_, slots, where):
    asked.append((slots['rows'], where.name))
    return dict(says.pop(0))

  monkeypatch.setattr(compiler, 'compile_answers', compile_answers)
  return says, asked


EXPERIMENT = Experiment(PRESETS['Qwen2.5-7B'])
TOO_LARGE = {'error': 'RESOURCE_EXHAUSTED: too large', 'compile_seconds': 1.0}


def with_rows(rows):
  """`COMPILED` for so many slots."""
  memory = COMPILED['memory'] | {'decode': {'arguments': 2 * GB + rows * 3 * GB // 64, 'temporaries': GB, 'outputs': 0}}
  return COMPILED | {'rows': rows, 'memory': memory}


def test_the_most_slots_are_compiled(compiled, capsys):
  says, asked = compiled
  most = int((0.97 * 16 * 2**30 - 3.25 * GB) / (5 / 64 * GB)) // 2 * 2  # two shards
  smaller = most * 9 // 10 // 2 * 2
  says += [with_rows(64), TOO_LARGE, with_rows(smaller)]
  (row,) = evaluation.plan(EXPERIMENT, [get('gsm8k')], ['v5e-8'], Asked())['topologies']
  assert asked == [(64, 'v5e-8'), (most, 'v5e-8'), (smaller, 'v5e-8')]
  assert (row['rows'], row['rows_that_fit'], row['answer_tokens']) == (64, smaller, 295)
  cells = capsys.readouterr().out.splitlines()[2].split(' | ')
  assert cells[:7] == ['| v5e-8', 'gsm8k', 'yes', '7.7', '16.0', f'64 ({smaller})', '768']
  assert cells[7:10] == ['2.00', '1.60', f'{row["ratio"]:.2f}']


def test_slots_that_do_not_fit(compiled, capsys):
  says, _ = compiled
  says += [TOO_LARGE, with_rows(2), with_rows(150)]
  (row,) = evaluation.plan(EXPERIMENT, [get('gsm8k')], ['v5e-8'], Asked(batch_size=999))['topologies']
  assert not row['fits'] and row['minutes'] is None and row['rows_that_fit'] > 100
  assert 'too large |' in capsys.readouterr().out


def test_each_host_evaluates_its_share(compiled):
  says, asked = compiled
  says += [with_rows(64)] * 3
  (row,) = evaluation.plan(EXPERIMENT, [get('gsm8k')], ['v5p-32'], Asked(limit=64))['topologies']
  assert asked[0] == (64, 'v5p-8') and (row['topology'], row['chips']) == ('v5p-32', 16)
  assert row['chip_hours'] == pytest.approx(row['minutes'] / 60 * 16)


@pytest.mark.parametrize(
  'words, line',
  [
    (['--evaluate', 'gsm9k'], 'gsm9k'),
    (['--evaluate', 'gsm8k', '--topology', 'v5q-8'], '--topology v5q-8: write KIND-SIZE'),
    (['--evaluate', 'gsm8k', '--max-new-tokens', '200000'], 'give at most --max-new-tokens 130944'),
    (['--evaluate', 'gsm8k', '--batch-size', '0'], '--batch-size is 0: give more than 0'),
    (['--evaluate', 'gsm8k', '--answer-tokens', '513'], '--answer-tokens 513 exceeds the 512'),
    (['--evaluate', 'arithmetic'], 'give --limit N'),
    (['--evaluate', MINE], 'openai_6b_finetuning_gsm8k: how many problems it has is not known here: give --limit N'),
    (['--price', '2'], '--price is for --evaluate only'),
  ],
)
def test_mistakes_come_before_the_compiler(words, line, monkeypatch, capsys):
  monkeypatch.setattr(compiler, 'check_installed', lambda: pytest.fail('too late'))
  assert cli.main(['plan', 'Qwen2.5-7B', '--topology', 'v5e-8', *words]) == 2
  assert line in capsys.readouterr().err


def test_what_is_no_model(tmp_path, capsys):
  for name in ('Qwen9', str(tmp_path), 'hf://Qwen/Qwen2.5-7B'):
    assert cli.main(['plan', name, '--topology', 'v5e-8', '--evaluate', 'gsm8k']) == 2
    assert name in (said := capsys.readouterr().err) and 'Qwen2.5-7B' in said


NEEDS_COMPILER = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason="no TPU compiler: pip install 'jax[tpu]'"
)
# Two key heads on a device of v5e-4, as Qwen-7B has four on one of v5e-8.
SMALL = ModelConfig(8192, 1024, 2816, 2, 8, 8, 128, 2048)


@NEEDS_COMPILER
@pytest.mark.parametrize('held, positions', [(None, 256), ('int8', 1024)])
def test_a_step_reads_weights_and_cache_once(held, positions):
  # Beside weights in int8 a smaller cache fits into the chips' own memory, and XLA moves parts of it there first.
  slots = {
    'rows': 32,
    'positions': positions,
    'width': 128,
    'dtype': 'bfloat16',
    'cache_dtype': 'bfloat16',
    'weights': held,
  }
  found = compiler.compile_answers(Experiment(SMALL), slots, chips.slice_of('v5e-4'))
  assert found['mesh']['fsdp'] * found['mesh']['tensor'] == 4
  weights = (1 if held else 2) * (2 * (2 * 1024 * 128 * (8 + 8) + 3 * 1024 * 2816) + 8192 * 1024)
  cache = 2 * 2 * 2 * 32 * positions * 8 * 128
  assert found['read_bytes'] == pytest.approx(weights + cache, rel=0.01)
  # Even if a call decoded a single token: it copies neither the cache nor more than a part of the weights.
  assert found['decode']['hbm_bytes'] + found['call']['hbm_bytes'] < 1.3 * found['read_bytes'] / 4
  assert found['decode']['collectives'] < 0.1 * found['read_bytes'] / 4  # no gather of weights
