"""The commands of `mathqwen`, one file each; `mathqwen/cli.py` finds them here by their file names.

A command is a module with

  HELP                 one line for `mathqwen --help`
  add_flags(parser)    declares its flags, each with a help text; a command with verbs (`convert to-hf`) adds them here
  run(args) -> dict    does the work, prints what a person reads, and returns what `--json` prints; with verbs, each
                       verb has a function of its own

Modules whose names begin with an underscore hold what several commands share. Importing a command must not import JAX
or NumPy, so that `--help` and spelling mistakes are answered at once: `run` imports what it needs.
"""

import pkgutil


def names() -> list[str]:
  """The names of all commands, in alphabetical order."""
  modules = [module.name for module in pkgutil.iter_modules(__path__)]
  return sorted(name for name in modules if not name.startswith('_'))
