"""`mathqwen plan`: the steps of training and of evaluation, compiled for TPU slices that are not here.

For other folders to use; nothing is imported here, so that each module costs only what it needs:

  plan_table.plan      compiles a training step for each slice, prints a table, returns its rows
  fits.plan            a table of what fits: sizes and methods of fine-tuning by slices
  evaluation.plan      the same table for the steps of `evaluate`

Only for these:

  compiler             the TPU compiler, in a process of its own: `python -m mathqwen.planning.compiler`
  answer_steps         what that process compiles of `evaluate`
  search.candidates    the settings that are worth compiling for a slice
  roofline.bounds      the least time a compiled step can take
  estimate, host_memory
"""

__all__ = ['evaluation', 'fits', 'plan_table']
