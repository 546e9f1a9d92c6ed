"""What the program runs on: chips and slices as data, what a step costs, meshes, and several hosts as one run.

For other folders to use; nothing is imported here, so that each module costs only what it needs:

  chips          `CHIPS`, `slice_of('v5p-32')`, `peak_flops` of a device
  devices        `choose`, `start`, `describe`: what a command computes on, or why it cannot
  flops          FLOPs of a step from the config alone
  cost           FLOPs and traffic counted in a traced and compiled step
  hbm            bytes of HBM that a compiled TPU program moves
  sharding       the mesh and the table of axis names
  hosts          `join`, `agree`, `gather`, `share`, `leave`

Only for these: `machine` (the accelerators that the machine has), `exchange` (how hosts hand each other text), `hlo`
(the text of a compiled program), and `jax_internals` (what JAX does not promise).
"""

__all__ = ['chips', 'cost', 'devices', 'flops', 'hbm', 'hosts', 'sharding']
