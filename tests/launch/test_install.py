"""launch/colab/install.py with a pip that only records its arguments."""

import pathlib
import runpy
import subprocess

import pytest
from IPython.core.error import UsageError

PATH = pathlib.Path(__file__).parent.parent.parent / 'launch' / 'colab' / 'install.py'


@pytest.fixture
def script():
  return runpy.run_path(str(PATH))


@pytest.fixture
def pip(monkeypatch):
  """Calls as (arguments, lines of the constraints file); `pip.answer` is what it ends with."""

  class Pip:
    answer, calls = subprocess.CompletedProcess([], 0, '', ''), []

  def run(arguments, **_):
    file = arguments[arguments.index('--constraint') + 1]
    Pip.calls.append((arguments, pathlib.Path(file).read_text().split()))
    return Pip.answer

  Pip.calls = []
  monkeypatch.setattr(subprocess, 'run', run)
  return Pip


def test_everything_is_installed_around_the_jax_that_is_there(script, pip, capsys):
  script['install']()
  ((arguments, constraints),) = pip.calls
  assert arguments[1:4] == ['-m', 'pip', 'install'] and arguments[-1] == f'{PATH.parents[2]}[hf]'
  assert not [word for word in arguments if 'jax' in word or 'tpu' in word or word in ('-U', '--upgrade')]
  import jax
  import jaxlib
  import numpy

  assert {f'jax=={jax.__version__}', f'jaxlib=={jaxlib.__version__}', f'numpy=={numpy.__version__}'} <= {*constraints}
  assert not [line for line in constraints if not line.startswith(('jax', 'libtpu', 'numpy='))]
  assert f'with JAX {jax.__version__}' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('kept', 'words'),
  [
    ({'jax': '0.7.2'}, 'has JAX 0.7.2, mathqwen needs <0.11,>=0.10.2, and nothing was installed.*Runtime version'),
    ({'jax': '0.11.0'}, 'has JAX 0.11.0'),
    ({'numpy': '2.1.0'}, 'no JAX here.*v5e-1 TPU'),
  ],
)
def test_another_jax_is_refused_and_not_replaced(script, pip, kept, words, monkeypatch):
  monkeypatch.setitem(script['install'].__globals__, 'installed', lambda: kept)
  with pytest.raises(UsageError, match=words):
    script['install']()
  assert not pip.calls


def test_the_jax_of_setup_py(script):
  assert script['needed']().name == 'jax'
  for version, fits in {'0.10.1': False, '0.10.2': True, '0.10.9': True, '0.11.0': False}.items():
    assert script['needed']().specifier.contains(version) == fits, version


def test_a_pip_that_fails_says_why(script, pip):
  pip.answer = subprocess.CompletedProcess([], 1, '', 'Looking\nERROR: Cannot install grain and numpy==1.26.4\n')
  with pytest.raises(UsageError, match='which must not change:\nERROR: Cannot install grain'):
    script['install']()
