"""`%load_ext mathqwen`: the command line in a notebook, as %mathqwen.

%mathqwen train gsm8k_0_5b --workdir {WORKDIR}

It runs in the process of the kernel, because only one process can use a TPU: once the kernel holds it, `!mathqwen`
finds none. A command that fails stops "Run all", which a failing `!` command does not.
"""

import shlex

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

from mathqwen import cli


def run(line: str) -> None:
  """Runs `mathqwen LINE`; IPython has already filled in the {variables}. UsageError when the command fails."""
  try:
    status = cli.main(shlex.split(line))
  except SystemExit as end:  # of --help
    status = end.code
  if status:
    raise UsageError(f'mathqwen ended with status {status}; the reason is printed above')


def load(shell: InteractiveShell) -> None:
  """Registers %mathqwen in the IPython shell."""
  shell.register_magic_function(run, magic_name='mathqwen')
