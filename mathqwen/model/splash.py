"""Attention on TPU: JAX's splash kernel, which skips blocks above the diagonal and never holds [T, S] scores."""

import functools

import jax
from jax.experimental.pallas.ops.tpu import splash_attention as lib
from jax.sharding import Mesh, PartitionSpec

from mathqwen.errors import UserError

LANES = 128  # blocks are multiples of it
BLOCK = 512  # queries and keys of a block, at most: 3 of the 4 blocks of a row of 1,024 are computed


@functools.lru_cache
def _kernel(heads: int, length: int, interpret: bool):
  sizes = [size for size in range(LANES, BLOCK + 1, LANES) if length % size == 0]
  if not sizes:
    raise UserError(
      f"train.attention 'splash' takes rows of whole blocks of {LANES}, and data.seq_len is {length}: "
      f"set data.seq_len={-(-length // LANES) * LANES}, or train.attention='reference'"
    )
  names = ('block_q', 'block_kv', 'block_kv_compute', 'block_q_dkv', 'block_kv_dkv', 'block_kv_dkv_compute')
  with jax.ensure_compile_time_eval():  # the mask's tables are constants, in whatever trace they are first needed
    return lib.make_splash_mha(
      lib.MultiHeadMask([lib.CausalMask((length, length))] * heads),
      head_shards=1,
      q_seq_shards=1,
      block_sizes=lib.BlockSizes(**dict.fromkeys(names, max(sizes)), use_fused_bwd_kernel=True),
      interpret=interpret,
    )


def make(mesh: Mesh | None, interpret: bool = False):
  """(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT) -> o_BTNH; on a mesh each chip has its own rows and heads."""

  def splash(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT):
    kernel = _kernel(q_BTNH.shape[2], q_BTNH.shape[1], interpret)
    heads_first = lambda x: x.swapaxes(1, 2)
    q_BNTH = heads_first(q_BTNH * q_BTNH.shape[-1] ** -0.5)
    of_row = lambda q, k, v, segments: kernel(q, k, v, lib.SegmentIds(segments, segments))
    return heads_first(jax.vmap(of_row)(q_BNTH, heads_first(k_BTKH), heads_first(v_BTKH), segment_ids_BT))

  if mesh is None:
    return splash
  rows = ('data', 'fsdp')
  heads = PartitionSpec(rows, None, 'tensor', None)
  return jax.shard_map(
    splash, mesh=mesh, in_specs=(heads, heads, heads, PartitionSpec(rows, None)), out_specs=heads, check_vma=False
  )
