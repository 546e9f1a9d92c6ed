"""What a run needs of its hosts' memory: most of it while a checkpoint is saved."""

from typing import Any

from mathqwen.hardware import chips

PROCESS_BYTES = 8 * 2**30  # assumed: Python, JAX, libtpu with its buffer for transfers (4 GiB), and rows
# Orbax encodes what it writes, at most this much at a time (`save_concurrent_gb` of its StandardCheckpointHandler).
ENCODED_BYTES = 96 * 10**9
ASSUMPTIONS = """\
host: while it saves, a host holds a copy of the trained weights and moments of its chips, and encodes it for writing (a
  second one, at most 96 GB at a time); 8 GiB are assumed for everything else. Loading, exporting and converting take
  less: they go weight by weight."""


def host_memory(compiled: dict[str, Any], where: chips.Slice, settings: dict[str, Any]) -> dict[str, Any]:
  """The keys of a row of `mathqwen plan` about hosts.

  compiled: as `compiler.compile_here` returns it, bytes for each device. settings: those it was compiled with.
  """
  devices = where.machine.chips * where.chip.devices
  shards = settings['mesh.fsdp'] * settings['mesh.context'] * settings['mesh.tensor']
  offloaded = compiled.get('host_moments_bytes', 0)
  saved = compiled['weights_bytes'] - compiled.get('frozen_bytes', 0) + compiled['moments_bytes'] + offloaded
  copied = saved * min(devices, shards)  # copies are saved once
  needed = PROCESS_BYTES + offloaded * devices + copied + min(copied, ENCODED_BYTES)
  return {
    'hosts': where.hosts_per_slice * where.count,
    'host_machine': where.machine.name,
    'host_bytes_while_saving': needed,
    'host_memory_bytes': where.machine.memory_bytes,
    'host_fits': needed <= where.machine.memory_bytes,
  }


def line(row: dict[str, Any]) -> str:
  """A row of `mathqwen plan`, for people."""
  needed, memory = row['host_bytes_while_saving'] / chips.GIB, row['host_memory_bytes'] / chips.GIB
  text = f'{row["topology"]}: {needed:.1f} of {memory:.1f} GiB while saving, on each of {row["hosts"]} hosts'
  text = text if row['hosts'] > 1 else text.replace('on each of 1 hosts', 'on its host')
  remedy = '' if row['host_fits'] else ': DOES NOT FIT, take a slice with more hosts'
  return f'{text} ({row["host_machine"]}){remedy}'
