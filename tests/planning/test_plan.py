import dataclasses
import importlib.util
import io
import json
import subprocess
import sys

import jax
import pytest

from mathqwen import cli, compat, config
from mathqwen.adapter_config import AdapterConfig
from mathqwen.config import DataConfig, Experiment, MeshConfig, OptimConfig, TrainConfig
from mathqwen.errors import UserError
from mathqwen.hardware import chips
from mathqwen.model.config import PRESETS
from mathqwen.planning import compiler, estimate, plan_table, search

TINY = """
from mathqwen.config import DataConfig, Experiment, OptimConfig, TrainConfig
from mathqwen.model.config import ModelConfig

config = Experiment(
  ModelConfig(512, 256, 512, 2, 2, 1, 128, 1024),
  data=DataConfig(batch_size=8, seq_len=128),
  optim=OptimConfig(warmup_steps=1),
  train=TrainConfig(steps=10, dropout=0.0),
)
"""


def experiment(mesh=None, **train):
  mesh, train = mesh or MeshConfig(), TrainConfig(**{'dropout': 0.0} | train)
  return Experiment(PRESETS['Qwen2.5-7B'], data=DataConfig(batch_size=128), mesh=mesh, train=train)


def test_rotary_scaling_is_shown(capsys):
  scaled = config.override(experiment(), ['model.rope_scaling.rope_type=linear', 'model.rope_scaling.factor=2'])
  assert plan_table.plan(scaled, [], set())['rope_scaling']['factor'] == 2
  assert capsys.readouterr().err == 'rotary scaling: linear, factor 2.0; sequences of up to 262144 tokens\n'
  plan_table.plan(experiment(), [], set())
  assert capsys.readouterr().err == ''


def test_candidates():
  large = search.candidates(experiment(), chips.slice_of('v5p-32'), set())
  assert large[0] == {
    'mesh.data': 1, 'mesh.fsdp': 16, 'mesh.context': 1, 'mesh.tensor': 1,
    'train.remat': 'dots', 'train.micro_batches': 1,
  }  # fmt: skip
  small = search.candidates(experiment(), chips.slice_of('v5e-16'), set())
  assert 1 <= len(small) <= search.ATTEMPTS and small[0]['train.micro_batches'] > 1
  # The last resort has the least memory. One micro-batch: a second gradient would take more than half the rows save.
  assert small[-1]['train.remat'] == 'nested' and small[-1]['train.micro_batches'] == 1
  assert [tried['train.remat'] for tried in search.candidates(experiment(), chips.slice_of('v5e-8'), set())] == [
    'nested'
  ]
  kept = search.candidates(experiment(remat='mlp'), chips.slice_of('v5e-16'), {'train.remat'})
  assert {tried['train.remat'] for tried in kept} == {'mlp'}
  # 128 rows on 256 chips: two chips share a row.
  wide = search.candidates(experiment(), chips.slice_of('v5e-256'), set())
  assert (wide[0]['mesh.fsdp'], wide[0]['mesh.context'], wide[0]['mesh.tensor']) == (128, 2, 1)
  wide = search.candidates(experiment(), chips.slice_of('v5e-256'), {'mesh.context'})
  assert (wide[0]['mesh.fsdp'], wide[0]['mesh.context'], wide[0]['mesh.tensor']) == (128, 1, 2)
  with pytest.raises(UserError, match='v5e-256.*data.batch_size'):
    search.candidates(experiment(), chips.slice_of('v5e-256'), {'mesh.context', 'mesh.tensor'})
  two = search.candidates(experiment(), chips.slice_of('2xv5p-32'), set())
  assert (two[0]['mesh.data'], two[0]['mesh.fsdp']) == (2, 16)  # a copy of the model in each slice


def test_many_micro_batches_cost_traffic():
  """Every micro-batch gathers the weights: recomputing is faster than 16 of them, although `dots` would fit with 8."""
  tried = search.candidates(experiment(), chips.slice_of('v6e-8'), set())
  assert [(one['train.remat'], one['train.micro_batches']) for one in tried] == [
    ('dots', 4), ('gate', 4), ('mlp', 1), ('nested', 1)
  ]  # fmt: skip


LAYER = 3584 * (3584 + 512 + 512 + 3584) + 3 * 3584 * 18944
WEIGHTS = 28 * LAYER + 2 * 152064 * 3584


def test_estimated_memory_by_hand():
  """12 bytes for weights and moments, 4 for a gradient, 4 for a sum of several; one gathered layer."""
  mesh = {'data': 1, 'fsdp': 16, 'context': 1, 'tensor': 1}
  vectors = 3584 + 28 * (2 * 3584 + 128 * (28 + 2 * 4))  # norms and biases, which every device has
  counters = 2 * 4  # of the optimizer's steps

  def size(rows, remat='full', micro_batches=1, **optim):
    one = experiment(remat=remat, micro_batches=micro_batches)
    one = dataclasses.replace(one, data=DataConfig(batch_size=16 * rows), optim=OptimConfig(**optim))
    return estimate.estimate(one, mesh).total

  kept = 2 * 28 * 3584
  working = 2 * (3 * 18944 + 6 * 3584)
  tokens = 1024 * (kept + working)
  assert size(1) == WEIGHTS * 16 // 16 + vectors * 16 + counters + 4 * LAYER + tokens
  assert size(2, micro_batches=2) == WEIGHTS * 20 // 16 + vectors * 20 + counters + 4 * LAYER + tokens
  kept = 28 * 2 * (2 * 3584 + 128 * (28 + 2 * 4) + 2 * 18944)
  assert size(3, 'dots') - size(2, 'dots') == 1024 * (kept + working)
  # Moments of vectors stay float32; those in 8 bits have a scale for each row, here of 128 numbers at least.
  assert size(1) - size(1, name='adamw_bf16') == pytest.approx(WEIGHTS * 4 / 16, rel=1e-6)
  assert WEIGHTS * (6 - 8 / 128) / 16 < size(1) - size(1, name='adamw_8bit') < WEIGHTS * 6 / 16


@pytest.fixture
def compiled(monkeypatch):
  """Stands for the TPU compiler: `compiled.append(result)` in the order of the tries."""
  says, found = [], importlib.util.find_spec
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *args: name == 'libtpu' or found(name, *args))
  monkeypatch.setattr(compiler, 'compile_for', lambda experiment, where: dict(says.pop(0)))
  return says


TOO_LARGE = {'error': 'RESOURCE_EXHAUSTED: too large', 'compile_seconds': 1.0}


def test_a_row_by_hand(compiled, capsys):
  model = 128 * (6 * 1024 * (28 * LAYER + 152064 * 3584) + 3 * 28 * 2 * 2 * 3584 * 1024 * 1025 // 2)
  size = {'weights_bytes': 2**30, 'moments_bytes': 2 * 2**30, 'peak_bytes_per_chip': 10 * 2**30, 'collectives': {}}
  size |= {'arguments_bytes': 3e9, 'temporaries_bytes': 4e9, 'outputs_bytes': 2e9, 'hbm_bytes_per_chip': 9e9}
  size |= {'executed_flops_per_step': 1.25 * model, 'collective_bytes_per_step': 50e9, 'compile_seconds': 2.0}
  compiled += [TOO_LARGE, size]
  (row,) = plan_table.plan(experiment(micro_batches=4), ['2xv5p-32'], {'train.micro_batches'})['topologies']
  assert not compiled and row['fits'] and 'error' not in row and row['settings']['train.micro_batches'] == 4
  across = 2 * 4 * WEIGHTS / 16 / 2  # of float32 gradients, a chip's part: half of each sum comes from the other slice
  bounds = {
    'compute': 1.25 * model / (32 * 459e12),
    'hbm': (3e9 + 2e9 + 2 * 4e9 + 4 * 3 * 2 * WEIGHTS) / 2.765e12,
    'ici': (50e9 - across) / (3 * 100e9),  # open rows in three dimensions
    'dcn': across / 6.25e9,
  }
  assert row['bounds_seconds'] == pytest.approx(bounds)
  assert row['step_seconds'] == pytest.approx(bounds['compute']) and bounds['compute'] == max(bounds.values())
  assert row['step_seconds_serial'] == pytest.approx(sum(bounds.values()))
  assert row['mfu'] == pytest.approx(1 / 1.25)
  assert row['days'] == pytest.approx(50_000 * bounds['compute'] / (24 * 60 * 60))
  assert row['hbm_capacity_bytes'] == 95 * 2**30
  said = capsys.readouterr().out.splitlines()[2].split(' | ')
  want = ['| 2xv5p-32', '32', 'yes', '1.0', '2.0', '7.0', '10.0', '95.0', f'{model / 1e15:.2f}', '1.250', '46.6']
  assert said[:-1] == [
    *want, f'{bounds["compute"]:.2f} ({sum(bounds.values()):.2f})', '80%', f'{row["days"]:.2g}'
  ]  # fmt: skip


SIZES = {
  'peak_bytes_per_chip': 10 * 2**30, 'hbm_bytes_per_chip': 9e9, 'collectives': {}, 'arguments_bytes': 3e9,
  'temporaries_bytes': 4e9, 'outputs_bytes': 2e9, 'executed_flops_per_step': 1e15, 'collective_bytes_per_step': 50e9,
  'compile_seconds': 2.0,
}  # fmt: skip


def test_frozen_weights_are_read_as_they_are_held(compiled):
  """Twice a micro-batch, each time all of them in their own type, of which a device holds a sixteenth."""
  held = 3 * 2**27
  compiled += [SIZES | {'weights_bytes': held + 2**20, 'frozen_bytes': held, 'moments_bytes': 2**21}]
  one = experiment(micro_batches=4)
  adapter = AdapterConfig(rank=16, base='nf4')
  one = dataclasses.replace(one, init='hf:any/model', train=dataclasses.replace(one.train, adapter=adapter))
  (row,) = plan_table.plan(one, ['v5p-32'], {'train.micro_batches'})['topologies']
  assert row['bounds_seconds']['hbm'] == pytest.approx((3e9 + 2e9 + 2 * 4e9 + 4 * 2 * 16 * held) / 2.765e12)


PROCESS = 8 * 2**30


@pytest.mark.parametrize(
  'slice, weights, moments, needed, machine, hosts, fits',
  [
    # 4 chips a host, and a second time while it is encoded.
    ('v5p-32', 2**30, 2 * 2**30, PROCESS + 2 * 4 * 3 * 2**30, 'ct5p-hightpu-4t', 4, True),
    ('2xv5p-32', 2**30, 2 * 2**30, PROCESS + 2 * 4 * 3 * 2**30, 'ct5p-hightpu-4t', 8, True),
    ('v5e-8', 2**30, 2 * 2**30, PROCESS + 2 * 8 * 3 * 2**30, 'ct5lp-hightpu-8t', 1, True),
    # Two devices a chip; no more than 96 GB are encoded at a time.
    ('tpu7x-16', 10 * 2**30, 20 * 2**30, PROCESS + 8 * 30 * 2**30 + 96 * 10**9, 'tpu7x-standard-4t', 2, True),
    ('v5p-8', 30 * 2**30, 60 * 2**30, PROCESS + 4 * 90 * 2**30 + 96 * 10**9, 'ct5p-hightpu-4t', 1, False),
  ],
)
def test_memory_of_the_hosts(compiled, capsys, slice, weights, moments, needed, machine, hosts, fits):
  compiled += [SIZES | {'weights_bytes': weights, 'moments_bytes': moments}]
  (row,) = plan_table.plan(experiment(), [slice], set())['topologies']
  assert (row['host_bytes_while_saving'], row['host_machine'], row['hosts']) == (needed, machine, hosts)
  assert (
    row['fits'] and row['host_fits'] == fits and row['host_memory_bytes'] == chips.slice_of(slice).machine.memory_bytes
  )
  (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f'{slice}: ')]
  assert f'{needed / 2**30:.1f} of ' in line and machine in line and ('DOES NOT FIT' in line) == (not fits)


def test_frozen_weights_are_not_saved(compiled):
  compiled += [SIZES | {'weights_bytes': 3 * 2**30, 'frozen_bytes': 2 * 2**30, 'moments_bytes': 2**31}]
  (row,) = plan_table.plan(experiment(), ['v5e-8'], set())['topologies']
  assert row['host_bytes_while_saving'] == PROCESS + 2 * 8 * (2**30 + 2**31)


def test_copies_within_a_host_are_saved_once(compiled):
  compiled += [SIZES | {'weights_bytes': 2**30, 'moments_bytes': 2 * 2**30}]
  (row,) = plan_table.plan(experiment(MeshConfig(data=4, fsdp=2)), ['v6e-8'], set())['topologies']
  assert row['host_bytes_while_saving'] == PROCESS + 2 * 2 * 3 * 2**30


def test_a_chip_with_two_devices(compiled):
  """The compiler counts devices; a row counts chips. 16 devices are 8 chips of TPU7x."""
  tries = search.candidates(experiment(), chips.slice_of('tpu7x-16'), set())
  assert tries[0]['mesh.fsdp'] == 16
  compiled += [SIZES | {'weights_bytes': 2**30, 'moments_bytes': 2 * 2**30}]
  (row,) = plan_table.plan(experiment(), ['tpu7x-16'], set())['topologies']
  assert (row['chips'], row['weights_bytes'], row['peak_bytes_per_chip']) == (8, 2 * 2**30, 20 * 2**30)
  assert row['hbm_capacity_bytes'] == 192 * 2**30


def test_a_slice_on_which_nothing_fits(compiled, capsys):
  tries = len(search.candidates(experiment(), chips.slice_of('v5e-16'), set()))
  compiled += [TOO_LARGE] * tries
  (row,) = plan_table.plan(experiment(), ['v5e-16'], set())['topologies']
  assert not compiled and not row['fits'] and row['error'] == 'RESOURCE_EXHAUSTED: too large'
  assert (row['step_seconds'], row['mfu'], row['days'], row['chips']) == (None, None, None, 16)
  (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith('| v5e-16')]
  assert line.startswith('| v5e-16 | 16 | no | -') and '| 16.0 |' in line and line.endswith('too large |')


def answers(monkeypatch, **process):
  """Lets each compiler's process end so: returncode, stdout, stderr. Returns the list of requests."""
  requests = []

  def run(command, *, input, **_):
    requests.append(json.loads(input))
    return subprocess.CompletedProcess(command, **{'returncode': 0, 'stdout': '', 'stderr': ''} | process)

  monkeypatch.setattr(compiler.subprocess, 'run', run)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda *_: True)
  return requests


@pytest.mark.parametrize(
  'process, line',
  [
    (
      {'stdout': '{"failed": "JaxRuntimeError: INTERNAL: Mosaic failed to compile"}\n'},
      'v5e-16: the TPU compiler failed, which says nothing about the slice: JaxRuntimeError: INTERNAL: Mosaic failed',
    ),
    (
      {
        'returncode': -6,
        'stderr': 'F1128 05:00:01.2 77 a.cc:1] Check failed: x\n*** Check failure stack ***\n @ 0x1\n',
      },
      'v5e-16: .*SIGABRT F1128 05:00:01.2 77 a.cc:1] Check failed: x; ',
    ),
    ({'returncode': -11}, 'v5e-16: .*SIGSEGV; '),
    ({'returncode': -9}, 'v5e-16: the TPU compiler was killed, most likely for lack of memory on this machine'),
    ({'stdout': '{"refused": "train.attention: no"}\n'}, 'v5e-16: train.attention: no'),
  ],
)
def test_a_compiler_that_fails_does_not_mean_that_the_step_does_not_fit(process, line, monkeypatch):
  requests = answers(monkeypatch, **process)
  with pytest.raises(UserError, match=line):
    plan_table.plan(experiment(), ['v5e-16', 'v5p-32'], set())
  assert len(requests) == 1  # no other settings are tried, and no other slice


def test_the_slices_before_a_failure_are_shown(compiled, monkeypatch, capsys):
  compiled += [TOO_LARGE] * len(search.candidates(experiment(), chips.slice_of('v5e-16'), set()))

  def next_one(*_):
    if compiled:
      return dict(compiled.pop())
    raise UserError('failed')

  monkeypatch.setattr(compiler, 'compile_for', next_one)
  with pytest.raises(UserError, match='failed'):
    plan_table.plan(experiment(), ['v5e-16', 'v5p-32'], set())
  assert '| v5e-16 | 16 | no |' in capsys.readouterr().out


def test_a_defect_of_ours_is_none_of_the_compiler(monkeypatch):
  answers(monkeypatch, returncode=1, stderr="Traceback\nKeyError: 'x'\n")
  with pytest.raises(RuntimeError, match="KeyError: 'x'"):
    plan_table.plan(experiment(), ['v5e-16'], set())


@pytest.mark.parametrize(
  'error, answer',
  [
    (jax.errors.JaxRuntimeError('INTERNAL: a\nb'), {'failed': f'{jax.errors.JaxRuntimeError.__name__}: INTERNAL: a'}),
    (OSError('libtpu.so: undefined symbol'), {'failed': 'OSError: libtpu.so: undefined symbol'}),
    (UserError('set a'), {'refused': 'set a'}),
  ],
)
def test_what_the_compilers_process_answers(error, answer, monkeypatch, capsys):
  def fail(*_):
    raise error

  monkeypatch.setattr(compiler, 'compile_here', fail)
  request = {'experiment': config.to_json(experiment()), 'topology': 'v5e:1x1', 'options': {}}
  monkeypatch.setattr(sys, 'stdin', io.StringIO(json.dumps(request)))
  compiler.main()
  assert json.loads(capsys.readouterr().out) == answer


def test_the_libtpu_of_another_jax_is_named(compiled, monkeypatch, capsys):
  monkeypatch.setattr(compat, 'other_libtpu', lambda: 'libtpu 1 is not the one of JAX 2')
  compiled += [TOO_LARGE] * 9
  plan_table.plan(experiment(), ['v5e-16'], set())
  assert capsys.readouterr().err.startswith('libtpu 1 is not the one of JAX 2\n')


def test_a_failure_with_the_libtpu_of_another_jax_names_it(monkeypatch):
  monkeypatch.setattr(compat, 'other_libtpu', lambda: 'libtpu 1 is not the one of JAX 2')
  answers(monkeypatch, returncode=-6)
  with pytest.raises(UserError, match='SIGABRT; libtpu 1 is not the one of JAX 2$'):
    compiler.compile_for(experiment(), chips.slice_of('v5e-16'))


@pytest.mark.parametrize(
  'sizes, want',
  [
    ({'tensor': 2}, (1, 8, 1, 2)),
    ({'context': 4}, (1, 4, 4, 1)),
    ({'data': 2}, (2, 8, 1, 1)),
    ({'fsdp': 4, 'context': -1}, (1, 4, 4, 1)),
  ],
)
def test_mesh_sizes_of_a_config_file_are_kept(sizes, want):
  for settings in search.candidates(experiment(MeshConfig(**sizes)), chips.slice_of('v5p-32'), set()):
    assert tuple(settings[f'mesh.{name}'] for name in ('data', 'fsdp', 'context', 'tensor')) == want


def test_names_come_before_the_compiler(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(UserError, match='pip install'):
    plan_table.plan(experiment(), ['v5e-1'], set())
  with pytest.raises(UserError, match='--topology v5q-8: write KIND-SIZE'):
    plan_table.plan(experiment(), ['v5q-8'], set())


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason="no TPU compiler: pip install 'jax[tpu]'")
def test_plan_of_a_tiny_step(tmp_path, capsys):
  path = tmp_path / 'tiny.py'
  path.write_text(TINY)
  settings = ['train.remat=dots', 'train.micro_batches=2', 'train.loss_chunk=64']
  words = ['plan', str(path), '--topology', 'v5e-4', '--json', *(w for s in settings for w in ('--set', s))]
  assert cli.main(words) == 0
  (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])['topologies']
  assert row['fits'] and row['chips'] == 4 and row['settings']['mesh.fsdp'] == 4
  assert 0 < row['peak_bytes_per_chip'] < row['hbm_capacity_bytes'] == 16 * 2**30
  assert row['hbm_bytes_per_chip'] > row['weights_bytes'] + row['moments_bytes']
  params = 512 * 256 * 2 + 2 * (256 * 128 * 2 * 3 + 3 * 256 * 512)
  assert row['weights_bytes'] == pytest.approx(4 * params / 4, rel=0.05)  # norms and biases besides
  assert row['moments_bytes'] == pytest.approx(2 * row['weights_bytes'], rel=0.01)
  layers, head = 2 * (256 * 128 * 2 * 3 + 3 * 256 * 512), 512 * 256
  # Attention over whole blocks: forward, again, and backward with five multiplications in place of two.
  attention = (1 + 1 + 2.5) * 2 * 8 * 2 * 2 * 256 * 128 * 128
  executed = 6 * 8 * 128 * (layers + head) + attention
  assert row['executed_flops_per_step'] == pytest.approx(executed, rel=1e-3)
  gathered = 2 * (256 * 128 * 2 * 3 + 3 * 256 * 512) * 2 * 3 / 4  # once, in bfloat16
  assert row['collectives']['all-gather'] > gathered and 0 < row['mfu'] <= 1
  assert row['days'] == pytest.approx(10 * row['step_seconds'] / 86_400)


def test_settings_are_all_read():
  names = search.candidates(experiment(), chips.slice_of('v6e-16'), set())[0]
  assert dataclasses.asdict(plan_table._with_settings(experiment(), names).mesh) == {
    'data': 1, 'fsdp': 16, 'context': 1, 'tensor': 1
  }  # fmt: skip
