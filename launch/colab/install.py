"""`%run install.py`, then `install()`: installs this checkout into the notebook's kernel, and keeps its JAX.

Colab and Kaggle come with a JAX and a libtpu that fit each other and the machine. pip is constrained to their versions.
When mathqwen needs other versions, nothing is installed and the message says what to do.
"""

import contextlib
import importlib
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from importlib import metadata

from IPython.core.error import UsageError
from packaging.specifiers import SpecifierSet

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
KEPT = re.compile('jax|jaxlib|libtpu|libtpu-nightly|jax-.*|numpy')  # numpy: the kernel may have imported it already


def installed() -> dict[str, str]:
  """Versions of the packages that must not change: {'jax': '0.7.2', ...}.

  An image that was made in several steps can hold the metadata of a package twice, and pip leaves folders such as
  `~umpy-2.1.3.dist-info` behind. What counts is what the kernel imports.
  """
  versions: dict[str, list[str]] = {}
  for entry in sys.path:
    for folder in sorted(pathlib.Path(entry or '.').glob('*.dist-info')):
      name, _, version = folder.name.removesuffix('.dist-info').partition('-')
      name = re.sub('[-_.]+', '-', name).lower()
      if KEPT.fullmatch(name) and version not in versions.setdefault(name, []):
        versions[name].append(version)
  return {
    name: found[0] if len(found) == 1 else _imported_version(name, found) for name, found in sorted(versions.items())
  }


def _imported_version(name: str, found: list[str]) -> str:
  """The version that `import` gives, asked in another process: nothing is to be loaded here yet."""
  module = name.replace('-', '_').removesuffix('_nightly')
  code = f'import {module}; print({module}.__version__)'
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=_same_path())
  said = done.stdout.split()
  return said[-1] if done.returncode == 0 and said else found[0]  # the first on the path, where it does not say


def _same_path() -> dict[str, str]:
  """An environment in which another Python imports from the same places as this kernel."""
  return os.environ | {'PYTHONPATH': os.pathsep.join(entry for entry in sys.path if entry)}


def needed() -> SpecifierSet:
  """The versions of JAX that setup.py asks for."""
  return SpecifierSet(re.search(r"^JAX = '(.*)'", (CHECKOUT / 'setup.py').read_text(), re.MULTILINE).group(1))


def check(kept: dict[str, str], wanted: SpecifierSet) -> None:
  """UsageError: when this runtime has no JAX, or one that mathqwen does not work with. Nothing is changed before."""
  if 'jax' not in kept:
    raise UsageError(
      'no JAX here. Colab: Runtime > Change runtime type > v5e-1 TPU; Kaggle: Settings > Accelerator > TPU v5e-8. '
      'On your own machine: run bash launch/local/install.sh and use its .venv for the kernel'
    )
  if wanted.contains(kept['jax'], prereleases=True):
    return
  raise UsageError(
    f'this runtime has JAX {kept["jax"]}, mathqwen works with {wanted}, and nothing was installed. Install another JAX '
    f'in a cell: %pip install -U "{_jax_with_plugins(kept)}{wanted}". Then restart the session (Colab: Runtime > '
    'Restart session; Kaggle: Run > Restart & clear cell outputs) and run the cells again. A newer mathqwen may also '
    'work with this JAX'
  )


def _jax_with_plugins(kept: dict[str, str]) -> str:
  """'jax[tpu]': JAX with the extra of the accelerator whose plugin is here."""
  extras = {'jax-cuda12-plugin': 'cuda12', 'jax-cuda13-plugin': 'cuda13', 'libtpu': 'tpu', 'libtpu-nightly': 'tpu'}
  found = [extra for name, extra in extras.items() if name in kept]
  return f'jax[{found[0]}]' if found else 'jax'


def install() -> None:
  """Installs mathqwen without changing the packages that `installed` lists. UsageError: when that is impossible."""
  kept = installed()
  check(kept, needed())
  before = loaded()
  print('installing mathqwen and its dependencies; this takes a minute or two', flush=True)
  with tempfile.NamedTemporaryFile('w', suffix='.txt') as constraints:
    constraints.writelines(f'{name}=={version}\n' for name, version in kept.items())
    constraints.flush()
    pip = [sys.executable, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check']
    done = subprocess.run([*pip, '--constraint', constraints.name, f'{CHECKOUT}[hf]'], capture_output=True, text=True)
  if done.returncode:
    raise UsageError(_explain(done.stderr, kept))
  importlib.invalidate_caches()
  check_restart(before, loaded())
  print(f'installed mathqwen {metadata.version("mathqwen")} with JAX {kept["jax"]}')


def loaded() -> dict[str, str]:
  """Versions, on the disk, of the packages that this kernel has imported."""
  versions = {}
  for module, names in metadata.packages_distributions().items():
    if getattr(sys.modules.get(module), '__file__', None) is None:
      continue  # not imported, or a folder such as google/ that many packages share
    for name in names:
      with contextlib.suppress(metadata.PackageNotFoundError, ValueError, TypeError):  # what pip left behind
        versions[name] = metadata.version(name)
  return versions


def check_restart(before: dict[str, str], after: dict[str, str]) -> None:
  """UsageError: when pip replaced a package that this kernel has imported in its old version."""
  changed = [f'{name} {old} by {after[name]}' for name, old in sorted(before.items()) if after.get(name, old) != old]
  if changed:
    raise UsageError(
      f'restart the session now (Colab: Runtime > Restart session; Kaggle: Run > Restart & clear cell outputs) and run '
      f'the cells again: pip replaced {", ".join(changed)}, which the kernel has loaded already'
    )


def _explain(stderr: str, kept: dict[str, str]) -> str:
  """What pip says when it fails, and what to do."""
  lines = stderr.splitlines()
  errors = [line for line in lines if line.startswith('ERROR')] or lines[-3:]
  held = ', '.join(f'{name} {version}' for name, version in kept.items())
  remedy = (
    'Is the internet on (Kaggle: Settings > Internet)? If it is, install another JAX, restart the session and run the '
    f'cells again: %pip install -U "{_jax_with_plugins(kept)}{needed()}"'
  )
  if 'different Python' in stderr:
    remedy = 'Choose a runtime with such a Python (Colab: Runtime > Change runtime type > Runtime version)'
  return '\n'.join([f'pip could not install mathqwen together with {held}, which must not change:', *errors, remedy])
