"""How glibc's allocator treats large buffers."""

import ctypes

# Parameters of mallopt, from malloc.h
TRIM_THRESHOLD = -1
MMAP_THRESHOLD = -3
ARENA_MAX = -8


def tune(keep: bool) -> None:
  """Tells glibc to keep large buffers for reuse, or to return each to the kernel at once.

  keep: by default glibc returns the buffers of a training step on the CPU to the kernel after every step, and the next
  step faults them in again page by page. Kept ones stay in a single arena, because only the main arena can grow beyond
  64 MB. `keep=False` suits a conversion, which reads and writes many large arrays once.
  Does nothing where the C library has no mallopt.
  """
  libc = ctypes.CDLL(None)
  if not hasattr(libc, 'mallopt'):
    return
  if keep:
    libc.mallopt(MMAP_THRESHOLD, 2**30)
    libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(ARENA_MAX, 1)
  else:
    libc.mallopt(MMAP_THRESHOLD, 2**20)
