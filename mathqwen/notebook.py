"""`%load_ext mathqwen`: the command line in a notebook, as %mathqwen.

%mathqwen train gsm8k_0_5b --workdir {WORKDIR}

It runs in the kernel's process, because a TPU belongs to one process: once the kernel holds it, `!mathqwen` finds none.
A command that fails ends "Run all", which `!` does not.
"""

import shlex

from IPython.core.error import UsageError

from mathqwen import cli


def run(line: str):
  """`mathqwen LINE`, which IPython has filled in; UsageError unless it ends well."""
  try:
    status = cli.main(shlex.split(line))
  except SystemExit as end:  # --help
    status = end.code
  if status:
    raise UsageError(f'mathqwen ended with status {status}, and says why above')


def load(shell):
  shell.register_magic_function(run, magic_name='mathqwen')
