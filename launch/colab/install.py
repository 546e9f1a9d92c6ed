"""`%run install.py`, then `install()`: installs this checkout into the notebook's kernel, and keeps its JAX.

Colab and Kaggle come with a JAX and a libtpu that fit each other and the machine. pip is constrained to their versions.
When mathqwen needs other versions, nothing is installed and the message says what to do.
"""

import importlib
import pathlib
import re
import subprocess
import sys
import tempfile
from importlib import metadata

from IPython.core.error import UsageError
from packaging.requirements import Requirement

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
KEPT = re.compile('jax|jaxlib|libtpu|libtpu-nightly|jax-.*|numpy')  # numpy: the kernel may have imported it already


def installed() -> dict[str, str]:
  """Versions of the packages that must not change: {'jax': '0.10.2', ...}."""
  names = {re.sub('[-_.]+', '-', d.name).lower(): d.version for d in metadata.distributions()}
  return {name: names[name] for name in sorted(names) if KEPT.fullmatch(name)}


def needed() -> Requirement:
  """The versions of JAX that setup.py asks for."""
  return Requirement(re.search(r"'(jax[<>=!~].*?)'", (CHECKOUT / 'setup.py').read_text()).group(1))


def check(kept: dict[str, str], wanted: Requirement) -> None:
  """UsageError: when this runtime has no JAX, or one that mathqwen does not work with. Nothing is changed before."""
  if 'jax' not in kept:
    raise UsageError(
      'no JAX here. Colab: Runtime > Change runtime type > v5e-1 TPU; Kaggle: Settings > Accelerator > TPU v5e-8. '
      'On your own machine: run bash launch/local/install.sh and use its .venv for the kernel'
    )
  if not wanted.specifier.contains(kept['jax'], prereleases=True):
    raise UsageError(
      f'this runtime has JAX {kept["jax"]}, mathqwen needs {wanted.specifier}, and nothing was installed. Choose a '
      'runtime with such a JAX (Colab: Runtime > Change runtime type > Runtime version; Kaggle: Settings > Environment '
      'preferences), or use a commit of mathqwen that works with this one'
    )


def install() -> None:
  """Installs mathqwen without changing the packages that `installed` lists. UsageError: when that is impossible."""
  kept = installed()
  check(kept, needed())
  print('installing mathqwen and its dependencies; this takes a minute or two', flush=True)
  with tempfile.NamedTemporaryFile('w', suffix='.txt') as constraints:
    constraints.writelines(f'{name}=={version}\n' for name, version in kept.items())
    constraints.flush()
    pip = [sys.executable, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check']
    done = subprocess.run([*pip, '--constraint', constraints.name, f'{CHECKOUT}[hf]'], capture_output=True, text=True)
  if done.returncode:
    lines = done.stderr.splitlines()
    errors = [line for line in lines if line.startswith('ERROR')] or lines[-3:]
    held = ', '.join(f'{name} {version}' for name, version in kept.items())
    raise UsageError(
      f'pip could not install mathqwen together with {held}, which must not change:\n' + '\n'.join(errors) + '\n'
      'Is the internet on (Kaggle: Settings > Internet)? If so, this numpy or JAX may be too old: use a newer runtime'
    )
  importlib.invalidate_caches()
  print(f'installed mathqwen {metadata.version("mathqwen")} with JAX {kept["jax"]}')
