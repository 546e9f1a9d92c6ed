"""Attention on TPU: JAX's splash kernel, which skips blocks above the diagonal and never stores the [T, S] scores."""

import functools
from collections.abc import Callable

import jax
from jax.experimental.pallas.ops.tpu import splash_attention as lib
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mathqwen.errors import UserError

LANES = 128  # block sizes must be multiples of this
BLOCK = 512  # most queries and keys in a block; of the 2 x 2 blocks of a row of 1,024, the kernel computes 3


@functools.lru_cache
def _kernel(heads: int, length: int, parts: int, interpret: bool):
  """The kernel for rows of `length` whose queries are split in `parts`. UserError when no block size divides them."""
  sizes = [size for size in range(LANES, BLOCK + 1, LANES) if length % (size * parts) == 0]
  if not sizes:
    raise UserError(
      f"train.attention 'splash' takes rows of whole blocks of {LANES * parts}, and data.seq_len is {length}: "
      f"set data.seq_len={-(-length // (LANES * parts)) * LANES * parts}, or train.attention='reference'"
    )
  names = ('block_q', 'block_kv', 'block_kv_compute', 'block_q_dkv', 'block_kv_dkv', 'block_kv_dkv_compute')
  # The mask's tables must be constants, because this cache outlives the trace in which they are first made.
  with jax.ensure_compile_time_eval():
    return lib.make_splash_mha(
      lib.MultiHeadMask([lib.CausalMask((length, length), shard_count=parts)] * heads),
      head_shards=1,
      q_seq_shards=parts,
      block_sizes=lib.BlockSizes(**dict.fromkeys(names, max(sizes)), use_fused_bwd_kernel=True),
      interpret=interpret,
    )


def _attend(kernel, q_BTNH, k_BSKH, v_BSKH, query_segments_BT, key_segments_BS):
  heads_first = lambda x: x.swapaxes(1, 2)
  of_row = lambda q, k, v, *segments: kernel(q, k, v, lib.SegmentIds(*segments))
  q_BNTH = heads_first(q_BTNH * q_BTNH.shape[-1] ** -0.5)
  return heads_first(
    jax.vmap(of_row)(q_BNTH, heads_first(k_BSKH), heads_first(v_BSKH), query_segments_BT, key_segments_BS)
  )


@functools.lru_cache  # jit compiles once for each function object, so the same mesh must give the same object
def make(mesh: Mesh | None, interpret: bool = False) -> Callable:
  """The function (q_BTNH, k_BTKH, v_BTKH, segment_ids_BT) -> o_BTNH for this mesh.

  Each chip has its own rows, queries and heads. interpret: run the kernel in Python, for tests without a TPU.
  When rows are split over chips ('context'), each chip gathers the keys of its whole rows. The chip with the end of a
  row then computes more blocks than the one with its beginning.
  """

  def splash(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT):
    T, N = q_BTNH.shape[1:3]
    if mesh is None:
      return _attend(_kernel(N, T, 1, interpret), q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, segment_ids_BT)
    kernel = _kernel(N // mesh.shape['tensor'], T, mesh.shape['context'], interpret)
    tables = kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(None, 'context')))
    rows = ('data', 'fsdp')
    queries, keys = (PartitionSpec(rows, length, 'tensor', None) for length in ('context', None))
    ids = (PartitionSpec(rows, 'context'), PartitionSpec(rows, None))
    attend = jax.shard_map(
      _attend, mesh=mesh, in_specs=(tables, queries, keys, keys, *ids), out_specs=queries, check_vma=False
    )
    return attend(kernel, q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, segment_ids_BT)

  return splash
