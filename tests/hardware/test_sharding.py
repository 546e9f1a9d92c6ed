import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from mathqwen.config import MeshConfig
from mathqwen.errors import UserError
from mathqwen.hardware import sharding
from mathqwen.model import parameters

SPECS = {
  'embed': P(('tensor', 'context', 'fsdp'), None),
  'head': P(('tensor', 'context', 'fsdp'), None),
  'norm': P(None),
  'layers/input_norm': P(None, None),
  'layers/post_norm': P(None, None),
  'layers/q': P(None, 'tensor', None, ('context', 'fsdp')),
  'layers/k': P(None, 'tensor', None, ('context', 'fsdp')),
  'layers/v': P(None, 'tensor', None, ('context', 'fsdp')),
  'layers/o': P(None, ('context', 'fsdp'), 'tensor', None),
  'layers/q_bias': P(None, 'tensor', None),
  'layers/k_bias': P(None, 'tensor', None),
  'layers/v_bias': P(None, 'tensor', None),
  'layers/o_bias': P(None, None),
  'layers/q_norm': P(None, None),
  'layers/k_norm': P(None, None),
  'layers/gate': P(None, 'tensor', ('context', 'fsdp')),
  'layers/up': P(None, 'tensor', ('context', 'fsdp')),
  'layers/down': P(None, ('context', 'fsdp'), 'tensor'),
}


def test_every_weight_lies_where_the_table_says(tiny_config):
  mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
  got = {}
  for cfg in (tiny_config('qwen2'), tiny_config('qwen3', qkv_bias=True, o_bias=True)):
    shardings = jax.tree_util.tree_leaves_with_path(sharding.params_shardings(mesh, cfg))
    got |= {'/'.join(key.key for key in path): where.spec for path, where in shardings}
    ranks = [len(x.shape) for x in jax.tree.leaves(parameters.abstract(cfg))]
    assert [len(where.spec) for _, where in shardings] == ranks
  assert got == SPECS
  assert sharding.batch_sharding(mesh).spec == P(('data', 'fsdp'), 'context')


@pytest.mark.parametrize(
  'axes, want',
  [
    ('batch length width', P(('data', 'fsdp'), 'context', None)),
    ('copy whole', P('data', None)),
    ('copy whole embed', P('data', None, ('context', 'fsdp'))),
    ('tensor_vocab embed', P('tensor', ('context', 'fsdp'))),
    ('part whole width', P(('data', 'fsdp', 'context'), None, None)),
    ('vocab_parts whole width', P('data', None, None)),
    ('vocab_parts whole vocab', P('data', None, ('tensor', 'context', 'fsdp'))),
  ],
)
def test_activations_lie_as_they_are_drawn(axes, want):
  assert sharding.spec(tuple(axes.split())) == want


def test_weights_are_gathered_in_the_dtype_of_the_computation(equations):
  """The cast comes before the gather, and the gradient is cast where the weight lies."""
  place = sharding.placement(sharding.make_mesh(MeshConfig(), jax.devices()[:1]), 97)
  weights, axes = {'up': jnp.array([[1.0, 2.0], [3.0, 4.0]])}, {'up': ('mlp', 'embed')}

  def both(weights, one):
    gathered, pull = jax.vjp(lambda w: place.gather(w, axes, 'bfloat16', one), weights)
    return gathered, *pull(gathered)

  moves = equations(jax.make_jaxpr(both)(weights, jnp.float32(1)), 'sharding_constraint')
  split, gathered = P('tensor', ('context', 'fsdp')), P('tensor', None)
  assert [move.params['sharding'].spec for move in moves] == [split, gathered, split]
  assert {str(move.outvars[0].aval.dtype) for move in moves} == {'bfloat16'}
  result, gradient = both(weights, jnp.float32(3))  # not 1, so that it shows: XLA must see the weights depend on it
  assert result['up'].dtype == jnp.bfloat16 and result['up'].tolist() == [[3, 6], [9, 12]]
  assert gradient['up'].dtype == jnp.float32 and gradient['up'].tolist() == [[3, 6], [9, 12]]


@pytest.mark.parametrize(
  'vocab, sizes, table, parts',
  [
    (97, {'fsdp': 8}, P(('tensor', 'context'), ('fsdp',)), ('data', 'fsdp')),
    (97, {'fsdp': 4, 'context': 2}, P(('tensor',), ('context', 'fsdp')), ('data', 'fsdp', 'context')),
    (96, {'fsdp': 64}, P(('tensor', 'context'), ('fsdp',)), ('data', 'fsdp')),
    (98, {'fsdp': 4, 'tensor': 2}, P(('tensor', 'context'), ('fsdp',)), ('data', 'fsdp')),
    (98, {'fsdp': 2, 'context': 7}, P(('tensor', 'context', 'fsdp'), None), 'data'),
    (98, {'fsdp': 2, 'context': 4}, P(('tensor', 'fsdp'), ('context',)), ('data', 'context')),
    (98, {'context': 2, 'tensor': 2}, P(('tensor', 'fsdp'), ('context',)), ('data', 'context')),
  ],
)
def test_tables_whose_rows_do_not_divide_are_split_by_columns(vocab, sizes, table, parts, tiny_config, abstract_mesh):
  """All other weights lie where they always do."""
  shape = {'data': 1, 'fsdp': 1, 'context': 1, 'tensor': 1} | sizes
  mesh, cfg = abstract_mesh(**shape), tiny_config(vocab_size=vocab)
  shardings = jax.tree_util.tree_leaves_with_path(sharding.params_shardings(mesh, cfg))
  got = {'/'.join(key.key for key in path): where.spec for path, where in shardings}
  assert {name: got[name] for name in ('embed', 'head')} == {'embed': table, 'head': table}
  assert all(where == SPECS[name] for name, where in got.items() if name not in ('embed', 'head'))
  assert sharding.rules(shape, vocab)['vocab_parts'] == parts
  note = sharding.undivided(shape, cfg)
  assert (note is None) == (parts == 'data')
  assert note is None or note.startswith(f'vocab_size {vocab} is not divisible by mesh.')


def test_two_axes_on_one_mesh_axis_are_refused():
  with pytest.raises(ValueError, match='collide'):
    sharding.spec(('heads', 'mlp'))
  with pytest.raises(KeyError):
    sharding.spec(('experts',))


@pytest.mark.parametrize(
  'mesh, devices, want',
  [
    (MeshConfig(), 8, (1, 8, 1, 1)),
    (MeshConfig(data=-1, fsdp=2, tensor=2), 8, (2, 2, 1, 2)),
    (MeshConfig(data=2, fsdp=2, tensor=-1), 8, (2, 2, 1, 2)),
    (MeshConfig(fsdp=-1, context=4), 8, (1, 2, 4, 1)),
    (MeshConfig(data=1, fsdp=1, tensor=1), 1, (1, 1, 1, 1)),
  ],
)
def test_mesh_shape(mesh, devices, want):
  assert sharding.mesh_shape(mesh, devices) == dict(zip(('data', 'fsdp', 'context', 'tensor'), want, strict=True))


@pytest.mark.parametrize(
  'mesh, devices',
  [
    (MeshConfig(data=3), 8),
    (MeshConfig(data=2, fsdp=2, tensor=1), 8),
    (MeshConfig(data=-1, fsdp=-1), 8),
    (MeshConfig(data=0), 8),
    (MeshConfig(data=-2), 8),
  ],
)
def test_mesh_that_does_not_fit_the_devices(mesh, devices):
  with pytest.raises(UserError, match='mesh'):
    sharding.mesh_shape(mesh, devices)


@pytest.mark.parametrize('vocab, devices, want', [(96, 8, (4, 2)), (98, 8, (4, 2)), (97, 8, (8, 1)), (97, 1, (1, 1))])
def test_a_mesh_that_fits_any_vocabulary(vocab, devices, want, tiny_config):
  """WizardMath has 32,001 rows: no power of two divides them."""
  cfg = tiny_config(vocab_size=vocab)
  mesh = sharding.fitting(cfg, devices)
  assert (mesh.data, mesh.fsdp, mesh.tensor) == (1, *want)
  sharding.check(sharding.mesh_shape(mesh, devices), cfg)


def check(cfg, data=1, fsdp=1, context=1, tensor=1, **batch):
  sharding.check({'data': data, 'fsdp': fsdp, 'context': context, 'tensor': tensor}, cfg, **batch)


def test_sizes_that_fit(tiny_config):
  cfg = tiny_config(vocab_size=96)
  check(cfg, 2, 2, tensor=2, batch_size=8, micro_batches=2)
  check(cfg, 1, 2, context=4, batch_size=8, seq_len=16)
  check(cfg, 1, 2, context=4, batch_size=2, seq_len=16)  # mesh.context does not split rows
  check(cfg, batch_size=3)
  check(tiny_config(), fsdp=8, batch_size=8)  # 97 rows


@pytest.mark.parametrize(
  'mesh, batch, remedy',
  [
    (
      {'tensor': 4},
      {},
      'mesh.tensor 4 does not divide num_attention_heads 6, num_key_value_heads 2: set mesh.tensor=2',
    ),
    ({'fsdp': 7}, {}, 'mesh.fsdp 7 does not divide hidden_size 48: set mesh.fsdp=1 and mesh.data=7'),
    ({'data': 4}, {'batch_size': 7}, 'data.batch_size 7 in 1 micro-batches .*set data.batch_size=8'),
    ({'data': 2, 'fsdp': 2}, {'batch_size': 10}, 'set data.batch_size=8'),
    ({'data': 4}, {'batch_size': 4, 'micro_batches': 2}, 'set data.batch_size=8'),
    ({'data': 8}, {'batch_size': 2}, 'set data.batch_size=8'),
    ({'context': 4}, {'seq_len': 18}, 'mesh.context 4 does not divide data.seq_len 18: set mesh.context=2'),
    ({'context': 8}, {'seq_len': 20}, 'mesh.context 8 does not divide data.seq_len 20: set mesh.context=4'),  # and 48
    (
      {'context': 4, 'fsdp': 8},
      {'seq_len': 16},
      'mesh.fsdp 8 .* hidden_size / mesh.context 12: set mesh.fsdp=4 and mesh.data=2',
    ),
  ],
)
def test_sizes_that_do_not_fit_name_the_nearest_that_does(mesh, batch, remedy, tiny_config):
  with pytest.raises(UserError, match=remedy):
    check(tiny_config(vocab_size=96), **mesh, **batch)


def test_all_problems_are_one_error(tiny_config):
  with pytest.raises(UserError, match='vocab_size 97.*mesh.fsdp=.*data.batch_size='):
    check(tiny_config(), fsdp=5, tensor=2, batch_size=4)


class Chip:
  """What `create_hybrid_device_mesh` looks at in a device."""

  platform = device_kind = 'cpu'

  def __init__(self, number, per_slice):
    self.id, self.process_index, self.slice_index = number, number, number // per_slice


def test_slices_hold_copies_of_the_model():
  mesh = sharding.make_mesh(MeshConfig(data=4, fsdp=2), [Chip(i, 4) for i in range(8)])
  slices = [[chip.slice_index for chip in row.flat] for row in mesh.devices]
  assert mesh.shape == {'data': 4, 'fsdp': 2, 'context': 1, 'tensor': 1}
  assert slices == [[0, 0], [0, 0], [1, 1], [1, 1]]
  with pytest.raises(UserError, match='mesh.data 1 is not divisible by the 2 slices here.*set mesh.data=2'):
    sharding.make_mesh(MeshConfig(), [Chip(i, 4) for i in range(8)])


class TorusChip:
  """What `create_device_mesh` looks at in a chip of a v5p slice."""

  platform, device_kind, core_on_chip, process_index, slice_index = 'tpu', 'TPU v5', 0, 0, 0

  def __init__(self, number, coords):
    self.id, self.coords = number, coords


def test_an_axis_of_the_mesh_may_take_a_part_of_an_axis_of_the_slice():
  """128 x 2 on 4 x 8 x 8 chips. Along the axis of 2, chips are neighbours."""
  places = [(x, y, z) for x in range(4) for y in range(8) for z in range(8)]
  mesh = sharding.make_mesh(MeshConfig(fsdp=128, tensor=2), [TorusChip(*place) for place in enumerate(places)])
  assert mesh.shape == {'data': 1, 'fsdp': 128, 'context': 1, 'tensor': 2}
  pairs = [[chip.coords for chip in pair] for pair in mesh.devices.reshape(128, 2)]
  assert sorted(coords for pair in pairs for coords in pair) == places
  for a, b in pairs:
    assert sum(x != y for x, y in zip(a, b, strict=True)) == 1, pairs
