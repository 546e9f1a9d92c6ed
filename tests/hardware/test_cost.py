"""Programs small enough to count by hand, on 8 simulated devices."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec as P

from mathqwen.hardware import cost

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = """
import json
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from mathqwen.hardware import cost

mesh = jax.make_mesh((2, 4), ('a', 'b'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
on = lambda *axes: NamedSharding(mesh, P(*axes))
struct = lambda shape, *axes: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=on(*axes))
manual = lambda f, i, o: jax.jit(jax.shard_map(f, mesh=mesh, in_specs=i, out_specs=o, check_vma=False))
ring = [(i, (i + 1) % 4) for i in range(4)]

def turns(x):
  return jax.lax.scan(lambda c, _: (jax.lax.ppermute(c, 'b', ring) * 2, None), x, None, length=5)[0]

programs = {
  'all-gather': manual(lambda x: jax.lax.all_gather(x, 'b', tiled=True), P('b'), P()),
  'all-reduce': manual(lambda x: jax.lax.psum(x, 'b'), P('b'), P()),
  'reduce-scatter': manual(lambda x: jax.lax.psum_scatter(x, 'b', tiled=True), P(), P('b')),
  'all-to-all': manual(lambda x: jax.lax.all_to_all(x, 'b', 1, 0, tiled=True), P('b'), P(None, 'b')),
  'collective-permute': manual(turns, P('b'), P('b')),
}
found = {}
for name, program in programs.items():
  x = struct((16, 64), *(() if name == 'reduce-scatter' else ('b',)))
  found[name] = cost.collective_bytes(program.lower(x).compile().as_text())
print(json.dumps(found))
"""


def test_bytes_between_devices():
  env = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': os.environ['XLA_FLAGS'] + ' --xla_force_host_platform_device_count=8',
    'PYTHONPATH': str(ROOT),
  }
  done = subprocess.run([sys.executable, '-c', PROGRAM], env=env, capture_output=True, text=True, timeout=200)
  assert done.returncode == 0, done.stderr[-2000:]
  found = json.loads(done.stdout)
  whole = 16 * 64 * 4  # bytes; a quarter on each device of the axis
  want = {
    'all-gather': whole * 3 // 4,
    'all-reduce': whole // 4 * 2 * 3 // 4,
    'reduce-scatter': whole * 3 // 4,
    'all-to-all': whole // 4 * 3 // 4,
    'collective-permute': whole // 4 * 5,
  }
  assert found == {name: dict.fromkeys(cost.KINDS, 0) | {name: moved} for name, moved in want.items()}


TPU = """HloModule step, num_partitions=16

%fused (p: bf16[4,8]) -> bf16[4,128] {
  %p = bf16[4,8]{1,0} parameter(0)
  ROOT %g = bf16[4,128]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, replica_groups=mesh['x'=1,'y'=16] {'y'}
}

%fused.done (p.2: bf16[4,8]) -> bf16[4,128] {
  %p.2 = bf16[4,8]{1,0} parameter(0)
  ROOT %g.2 = bf16[4,128]{1,0:T(8,128)(2,1)} all-gather(%p.2), channel_id=7, replica_groups=mesh['x'=1,'y'=16] {'y'}
}

%all-reduce-scatter (p.3: f32[16,4]) -> f32[1,4] {
  %p.3 = f32[16,4]{1,0} parameter(0)
  ROOT %r = f32[16,4]{1,0} all-reduce(%p.3), channel_id=8, replica_groups=[1,16]<=[16], to_apply=%add
}

%cond (t: (u32[], bf16[4,8])) -> pred[] {
  %c = u32[]{:T(128)} constant(8)
  %t = (u32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%t), index=0
  ROOT %lt = pred[] compare(%i, %c), direction=LT
}

%body (t.2: (u32[], bf16[4,8])) -> (u32[], bf16[4,8]) {
  %two = u32[]{:T(128)} constant(2)
  %t.2 = (u32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  %i.2 = u32[]{:T(128)} get-tuple-element(%t.2), index=0
  %x = bf16[4,8]{1,0} get-tuple-element(%t.2), index=1
  %next = u32[]{:T(128)} add(%i.2, %two), metadata={}
  %a = bf16[4,128]{1,0} fusion(%x), kind=kCustom, calls=%fused
  %b = bf16[4,128]{1,0} fusion(%x), kind=kCustom, calls=%fused.done
  %s = f32[1,4]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter
  ROOT %r.2 = (u32[]{:T(128)}, bf16[4,8]{1,0}) tuple(%next, %x)
}

ENTRY %main (e: (u32[], bf16[4,8])) -> (u32[], bf16[4,8]) {
  %e = (u32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  ROOT %w = (u32[]{:T(128)}, bf16[4,8]{1,0}) while(%e), condition=%cond, body=%body, metadata={op_name="x"}
}
"""


def test_tpu_programs_write_loops_and_pieces_differently():
  """Loops count by 2 and do not say how often they run. One asynchronous gather is in two fusions."""
  assert cost.collective_bytes(TPU) == dict.fromkeys(cost.KINDS, 0) | {
    'all-gather': 4 * 4 * 120 * 2,
    'reduce-scatter': 4 * 15 * 4 * 4,
  }


def test_a_loop_that_depends_on_data_takes_the_given_turns():
  text = TPU.replace('constant(2)', 'partition-id()')
  assert cost.collective_bytes(text, turns=(3,))['all-gather'] == 3 * 4 * 120 * 2


def test_flops_of_loops_conditions_and_derivatives():
  a, b = jnp.zeros((3, 5)), jnp.zeros((5, 7))
  one = 2 * 3 * 5 * 7
  assert cost.matmul_flops(jax.make_jaxpr(lambda a, b: a @ b)(a, b)) == one

  def loop(a, b):
    return jax.lax.scan(lambda c, _: (c + a @ b, None), jnp.zeros((3, 7)), None, length=4)[0]

  assert cost.matmul_flops(jax.make_jaxpr(jax.jit(loop))(a, b)) == 4 * one
  assert cost.matmul_flops(jax.make_jaxpr(jax.grad(lambda a, b: jnp.sum((a @ b) ** 2), (0, 1)))(a, b)) == 3 * one
  again = jax.checkpoint(lambda a, b: jnp.sum(jnp.sin(a @ b)))
  assert cost.matmul_flops(jax.make_jaxpr(jax.grad(again, (0, 1)))(a, b)) == 4 * one
  branch = lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b @ b.T @ b, lambda: a @ b)
  assert cost.matmul_flops(jax.make_jaxpr(branch)(a, b)) == 3 * one


def test_an_asynchronous_gather_counts_its_result():
  text = """HloModule step, num_partitions=8

ENTRY %main (p: f32[4,8]) -> f32[4,32] {
  %p = f32[4,8]{1,0} parameter(0)
  %s = (f32[4,8]{1,0}, f32[4,32]{1,0}) all-gather-start(%p), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={1}
  ROOT %d = f32[4,32]{1,0} all-gather-done(%s)
}
"""
  assert cost.collective_bytes(text)['all-gather'] == 4 * 32 * 4 * 3 // 4


def test_flops_of_kernels_and_of_parts_on_devices(abstract_mesh):
  def kernel(a_ref, b_ref, out_ref):
    out_ref[...] = a_ref[...] @ b_ref[...]

  whole = pl.BlockSpec((8, 8), lambda i, j: (i, j))
  call = pl.pallas_call(kernel, grid=(2, 3), in_specs=[whole, whole], out_specs=whole, out_shape=jnp.zeros((16, 24)))
  assert cost.matmul_flops(jax.make_jaxpr(call)(jnp.zeros((16, 24)), jnp.zeros((16, 24)))) == 6 * 2 * 8**3
  mesh = abstract_mesh(x=4)
  split = jax.shard_map(lambda a, b: a @ b, mesh=mesh, in_specs=(P('x'), P()), out_specs=P('x'))
  struct = jax.ShapeDtypeStruct
  assert cost.matmul_flops(jax.make_jaxpr(split)(struct((8, 5), 'f4'), struct((5, 7), 'f4'))) == 2 * 8 * 5 * 7


def test_flops_of_a_loop_that_depends_on_data():
  a = jnp.zeros((4, 4))
  loop = lambda a: jax.lax.while_loop(lambda c: c[0, 0] < 9, lambda c: c @ a, a)
  assert cost.matmul_flops(jax.make_jaxpr(loop)(a), turns=(6,)) == 6 * 2 * 4**3
  with pytest.raises(StopIteration):
    cost.matmul_flops(jax.make_jaxpr(loop)(a))


GATHERED = 4 * 120 * 2  # bytes that one turn of the loop in TPU gathers


@pytest.mark.parametrize(
  'old, new',
  [
    ('constant(8)', 'partition-id()'),
    ('direction=LT', 'direction=NE'),
    ('add(%i.2, %two)', 'multiply(%i.2, %two)'),
  ],
)
def test_a_counter_that_cannot_be_read_takes_the_given_turns(old, new):
  assert old in TPU
  assert cost.collective_bytes(TPU.replace(old, new), turns=(5,))['all-gather'] == 5 * GATHERED


def test_a_last_turn_that_passes_the_limit():
  """From 0 by 2 below 7: 0, 2, 4, 6."""
  assert cost.collective_bytes(TPU.replace('constant(8)', 'constant(7)'))['all-gather'] == 4 * GATHERED


def test_a_loop_in_a_loop():
  head, entry = TPU.split('ENTRY %main')
  noted = 'condition=%cond, body=%outer, backend_config={"known_trip_count":{"n":"3"}}'
  text = f'{head}%outer{entry}\nENTRY %main{entry}'
  start, end = text.rsplit('condition=%cond, body=%body', 1)
  assert cost.collective_bytes(start + noted + end)['all-gather'] == 3 * 4 * GATHERED


@pytest.mark.parametrize(
  'groups, n',
  [
    ('', 16),
    (', replica_groups=[2,8]<=[16]', 8),
    (', replica_groups={{0,1},{2,3}}', 2),
    (", replica_groups=mesh['x'=2,'y'=4,'z'=2] {'x','y'}", 8),
  ],
)
def test_sizes_of_groups(groups, n):
  text = f"""HloModule step, num_partitions=16

ENTRY %main (p: f32[4,8]) -> f32[4,8] {{
  %p = f32[4,8]{{1,0}} parameter(0)
  ROOT %s = f32[4,8]{{1,0}} all-gather(%p){groups}, dimensions={{1}}
}}
"""
  assert cost.collective_bytes(text)['all-gather'] == 4 * 32 * (n - 1) // n


def test_an_asynchronous_permutation_counts_its_result():
  text = """HloModule step, num_partitions=8

ENTRY %main (p: f32[4,8]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  %s = (f32[4,8]{1,0}, f32[4,8]{1,0}) collective-permute-start(%p), source_target_pairs={{0,1},{1,0}}
  ROOT %d = f32[4,8]{1,0} collective-permute-done(%s)
}
"""
  assert cost.collective_bytes(text)['collective-permute'] == 4 * 32


def test_the_largest_piece_of_a_channel_counts():
  assert '%g.2 = bf16[4,128]' in TPU
  assert cost.collective_bytes(TPU.replace('%g.2 = bf16[4,128]', '%g.2 = bf16[4,64]'))['all-gather'] == 4 * GATHERED
