"""`%run install.py`, then `install()`: mathqwen from this checkout into the notebook's kernel, around its own JAX.

Colab and Kaggle bring a JAX and a libtpu that fit each other and the machine. They stay what they are: pip is held to
their versions, and where mathqwen needs others, nothing is installed and the message says what to do.
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
  """Versions of the packages that must stay: {'jax': '0.10.2', ...}."""
  names = {re.sub('[-_.]+', '-', d.name).lower(): d.version for d in metadata.distributions()}
  return {name: names[name] for name in sorted(names) if KEPT.fullmatch(name)}


def needed() -> Requirement:
  """setup.py's line for jax."""
  return Requirement(re.search(r"'(jax[<>=!~].*?)'", (CHECKOUT / 'setup.py').read_text()).group(1))


def check(kept: dict[str, str], wanted: Requirement):
  """UsageError, before anything is changed, where the JAX of the machine is not one that mathqwen works with."""
  if 'jax' not in kept:
    raise UsageError(
      'no JAX here. Colab: Runtime > Change runtime type > v5e-1 TPU; Kaggle: Settings > Accelerator > TPU v5e-8. '
      'On a machine of your own: bash launch/local/install.sh, and take its .venv for the kernel'
    )
  if not wanted.specifier.contains(kept['jax'], prereleases=True):
    raise UsageError(
      f'this runtime has JAX {kept["jax"]}, mathqwen needs {wanted.specifier}, and nothing was installed. Take a '
      'runtime with such a JAX (Colab: Runtime > Change runtime type > Runtime version; Kaggle: Settings > Environment '
      'preferences), or the commit of mathqwen that was made for this one'
    )


def install():
  kept = installed()
  check(kept, needed())
  print('installing mathqwen and what it needs, a minute or two', flush=True)
  with tempfile.NamedTemporaryFile('w', suffix='.txt') as constraints:
    constraints.writelines(f'{name}=={version}\n' for name, version in kept.items())
    constraints.flush()
    pip = [sys.executable, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check']
    done = subprocess.run([*pip, '--constraint', constraints.name, f'{CHECKOUT}[hf]'], capture_output=True, text=True)
  if done.returncode:
    errors = [line for line in done.stderr.splitlines() if line.startswith('ERROR')] or done.stderr.splitlines()[-3:]
    held = ', '.join(f'{name} {version}' for name, version in kept.items())
    raise UsageError(
      f'pip could not install mathqwen beside {held}, which stay as they are:\n' + '\n'.join(errors) + '\n'
      'Is the internet on (Kaggle: Settings > Internet)? Else take a newer runtime, as its numpy or JAX may be too old'
    )
  importlib.invalidate_caches()
  print(f'mathqwen {metadata.version("mathqwen")} beside JAX {kept["jax"]}')
