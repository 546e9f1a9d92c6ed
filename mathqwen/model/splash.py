"""Attention on TPU: JAX's splash kernel, which skips blocks above the diagonal and never stores the [T, S] scores."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as lib
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mathqwen.errors import UserError

LANES = 128  # block sizes must be multiples of this
BLOCK = 512  # most queries and keys in a block; of the 2 x 2 blocks of a row of 1,024, the kernel computes 3

# With answer ids, the mask is computed from one number for each query, int32 of three fields, lowest bits first. Drawn
# for the second query (^) of the second answer, in a segment that begins at slot 10:
#
#   slots    10  11  12  13  14  15  16  17           first: slot of the first answer, 12
#   answers   0   0   1   1   1   2   2   2           skip:  positions of the answers before the query's own, 3
#   sees      x   x               x   x^              own:   positions from `first` to the query, 4
#
# Where there is nothing to skip, in questions and in segments of one answer, the number is the query's slot.
FIRST_BITS, SKIP_BITS, OWN_BITS = 12, 10, 10
MOST_SLOTS = 1 << FIRST_BITS
MOST_ANSWERED = 1 << OWN_BITS  # positions that the answers of a segment may take together


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


def _numbers(segment_ids_BT: jax.Array, answer_ids_BT: jax.Array) -> jax.Array:
  """int32 [B, T]: the number of each query, as drawn above."""
  before = lambda ids_BT: jnp.pad(ids_BT, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]  # of the slot before
  slots_BT = jnp.broadcast_to(jnp.arange(segment_ids_BT.shape[1]), segment_ids_BT.shape)
  latest = lambda is_start_BT: jax.lax.cummax(jnp.where(is_start_BT, slots_BT, 0), axis=1)
  is_new_segment_BT = segment_ids_BT != before(segment_ids_BT)
  answers_begin_BT = (answer_ids_BT > 0) & (is_new_segment_BT | (before(answer_ids_BT) == 0))
  first_BT = latest(answers_begin_BT)
  own_start_BT = latest(is_new_segment_BT | (answer_ids_BT != before(answer_ids_BT)))
  skip_BT = own_start_BT - first_BT
  own_BT = slots_BT - first_BT
  numbers_BT = first_BT | skip_BT << FIRST_BITS | own_BT << FIRST_BITS + SKIP_BITS
  return jnp.where((answer_ids_BT > 0) & (skip_BT > 0), numbers_BT, slots_BT)


def _sees(numbers, slots):
  """Whether queries with these numbers see the keys in these slots. Runs in the kernel; arrays of one shape."""
  first = numbers & MOST_SLOTS - 1
  skip = numbers >> FIRST_BITS & (1 << SKIP_BITS) - 1
  own = numbers >> FIRST_BITS + SKIP_BITS & MOST_ANSWERED - 1  # the mask removes copies of the sign
  after_question = slots - first
  return (after_question <= own) & ((after_question < 0) | (after_question >= skip))


def _with_numbers(kernel, numbers_T):
  """`kernel`, which is causal, with the mask that these numbers describe."""
  infos = (kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info)
  infos = (info and info._replace(q_sequence=numbers_T) for info in infos)
  return type(kernel)(*infos, **kernel.kwargs | {'mask_function': _sees})


def _attend(kernel, q_BTNH, k_BSKH, v_BSKH, query_segments_BT, key_segments_BS, numbers_BT=None):
  def of_row(q_NTH, k_KSH, v_KSH, segments_T, segments_S, numbers_T=None):
    own_kernel = kernel if numbers_T is None else _with_numbers(kernel, numbers_T)
    return own_kernel(q_NTH, k_KSH, v_KSH, lib.SegmentIds(segments_T, segments_S))

  heads_first = lambda x: x.swapaxes(1, 2)
  q_BNTH = heads_first(q_BTNH * q_BTNH.shape[-1] ** -0.5)
  numbers = () if numbers_BT is None else (numbers_BT,)
  return heads_first(
    jax.vmap(of_row)(q_BNTH, heads_first(k_BSKH), heads_first(v_BSKH), query_segments_BT, key_segments_BS, *numbers)
  )


def check_answered(length: int) -> None:
  """UserError: when the mask of a row of `length` with answer ids does not fit into numbers of 32 bits."""
  if length > MOST_SLOTS:
    raise UserError(
      f"data.share_prompts with train.attention 'splash' takes rows of at most {MOST_SLOTS}, and data.seq_len is "
      f"{length}: set data.seq_len={MOST_SLOTS}, or train.attention='blocks'"
    )


@functools.lru_cache  # jit compiles once for each function object, so the same mesh must give the same object
def make(mesh: Mesh | None, interpret: bool = False) -> Callable:
  """The function (q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, answer_ids_BT=None) -> o_BTNH for this mesh.

  Each chip has its own rows, queries and heads. interpret: run the kernel in Python, for tests without a TPU.
  When rows are split over chips ('context'), each chip gathers the keys of its whole rows. The chip with the end of a
  row then computes more blocks than the one with its beginning.
  """

  def splash(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, answer_ids_BT=None):
    T, N = q_BTNH.shape[1:3]
    ids = [segment_ids_BT, segment_ids_BT]
    if answer_ids_BT is not None:
      check_answered(T)
      ids.append(_numbers(segment_ids_BT, answer_ids_BT))
    if mesh is None:
      return _attend(_kernel(N, T, 1, interpret), q_BTNH, k_BTKH, v_BTKH, *ids)
    kernel = _kernel(N // mesh.shape['tensor'], T, mesh.shape['context'], interpret)
    tables = kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(None, 'context')))
    rows = ('data', 'fsdp')
    queries, keys = (PartitionSpec(rows, length, 'tensor', None) for length in ('context', None))
    of_queries, of_keys = PartitionSpec(rows, 'context'), PartitionSpec(rows, None)
    id_specs = (of_queries, of_keys, of_queries)[: len(ids)]
    attend = jax.shard_map(
      _attend, mesh=mesh, in_specs=(tables, queries, keys, keys, *id_specs), out_specs=queries, check_vma=False
    )
    return attend(kernel, q_BTNH, k_BTKH, v_BTKH, *ids)

  return splash
