"""The few static shapes on which `generate` runs, each a program to compile."""

STEPS = 32  # most tokens of each answer before the host looks which answers have ended
PREFILL = 2048  # most positions of prompts prefilled together; but at least one prompt on each shard of a batch


def round_up(positions: int, platform: str) -> int:
  """The least of a few sizes of a cache that holds `positions`: 1, 2, 3, 4, 6, 8, 12, 16, 24, ... times a block.

  Few sizes, because each is a program to compile.
  """
  block = 128 if platform == 'tpu' else 64  # as kernels take them
  blocks = -(-positions // block)
  power = 1
  while blocks > 4 * power:
    power *= 2
  return -(-blocks // power) * power * block


def last_size(positions: int, platform: str) -> int:
  """The largest of these sizes below `positions`; 0 when there is none."""
  size = 0
  while (larger := round_up(size + 1, platform)) < positions:
    size = larger
  return size


def whole_shards(rows: int, shards: int) -> int:
  """`rows`, rounded up to as many on each shard of a batch."""
  return -(-rows // shards) * shards  # -(-a // b) rounds up


def prefill_rows(width: int, rows: int, shards: int) -> int:
  """How many prompts of `width` positions are prefilled together for `rows` slots: as many on each shard of a batch."""
  return whole_shards(max(1, min(rows, PREFILL // width)), shards)


def ended_slots(rows: int) -> int:
  """How many of `rows` slots have to be free before `decode` stops, so that they take new prompts."""
  return max(1, rows // 32)
