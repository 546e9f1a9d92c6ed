"""`mathqwen plan`: the training step compiled for TPU slices that are not here.

For other folders to use; nothing is imported here, so that each module costs only what it needs:

  plan_table.plan      compiles for each slice, prints a table, returns its rows
  search.candidates    the settings that are worth compiling for a slice
  roofline.bounds      the least time a compiled step can take
  compiler             the TPU compiler, in a process of its own: `python -m mathqwen.planning.compiler`
"""

__all__ = ['compiler', 'plan_table', 'roofline', 'search']
