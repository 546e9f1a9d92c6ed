"""What the program runs on: chips and slices as data, what a step costs, meshes, and several hosts as one run.

For other folders to use; nothing is imported here, so that each module costs only what it needs:

  chips          `CHIPS`, `slice_of('v5p-32')`, `peak_flops` of a device
  flops          FLOPs of a step from the config alone
  cost           FLOPs and traffic counted in a traced and compiled step
  sharding       the mesh and the table of axis names
  hosts          `join`, `agree`, `gather`, `share`, `leave`

Only for `hosts`: `exchange` (how hosts hand each other text) and `jax_internals` (what JAX does not promise).
"""

__all__ = ['chips', 'cost', 'flops', 'hosts', 'sharding']
