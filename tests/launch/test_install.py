"""launch/colab/install.py with a pip that only records its arguments, and once with a real one."""

import os
import pathlib
import runpy
import subprocess
import sys
import sysconfig

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
  'kept, words',
  [
    ({'jax': '0.6.2'}, r'has JAX 0.6.2, mathqwen works with <0.13,>=0.7.2, and nothing.*pip install -U "jax<0.13'),
    ({'jax': '0.13.0', 'libtpu': '0.0.60'}, r'has JAX 0.13.0.*%pip install -U "jax\[tpu\]<0.13,>=0.7.2".*restart'),
    ({'jax': '0.13.0', 'jax-cuda12-plugin': '0.13.0'}, r'"jax\[cuda12\]<0.13,>=0.7.2".*Restart session.*Kaggle: Run'),
    ({'numpy': '2.1.0'}, 'no JAX here.*v5e-1 TPU'),
  ],
)
def test_another_jax_is_refused_and_not_replaced(script, pip, kept, words, monkeypatch):
  monkeypatch.setitem(script['install'].__globals__, 'installed', lambda: kept)
  with pytest.raises(UsageError, match=words):
    script['install']()
  assert not pip.calls


def test_the_jax_of_setup_py(script):
  """0.7.2 is Colab's, and Kaggle's."""
  versions = {'0.7.1': False, '0.7.2': True, '0.10.2': True, '0.12.0.1': True, '0.13.0': False}
  assert {version: script['needed']().contains(version) for version in versions} == versions


@pytest.mark.parametrize(
  'said, words',
  [
    (
      'Looking\nERROR: Cannot install grain and numpy==1.26.4\n',
      'not change:\nERROR: Cannot install grain.*\nIs the int',
    ),
    ('ERROR: Package mathqwen requires a different Python: 3.14.0\n', r'different Python: 3.14.0\nChoose a runtime'),
    ('a\nb\nc\nd', 'not change:\nb\nc\nd\nIs the internet on'),
  ],
)
def test_a_pip_that_fails_says_why(script, pip, said, words):
  pip.answer = subprocess.CompletedProcess([], 1, '', said)
  with pytest.raises(UsageError, match=words):
    script['install']()


def package(folder, name, imported, *versions):
  """A package `name` that says it is of version `imported`, with metadata of several versions beside it."""
  (folder / name).mkdir(parents=True, exist_ok=True)
  (folder / name / '__init__.py').write_text(f"__version__ = '{imported}'\n")
  for version in versions:
    (folder / f'{name}-{version}.dist-info').mkdir()


def test_the_imported_one_of_two_packages_with_a_name_counts(script, tmp_path, monkeypatch):
  """Two in one folder: the one that is imported, whichever stands first. Two on the path: the first."""
  package(tmp_path / 'a', 'jax', '0.7.2', '0.10.2', '0.7.2')
  package(tmp_path / 'a', 'jaxlib', '0.10.2', '0.10.2', '0.7.2')
  package(tmp_path / 'b', 'jax', '0.6.0', '0.6.0')
  package(tmp_path / 'b', 'numpy', '2.1.3', '2.1.3')
  package(tmp_path / 'b', 'libtpu', '0.0.21.1', '0.0.21.1')
  (tmp_path / 'b' / '~umpy-2.0.2.dist-info').mkdir()  # pip leaves such folders when it is interrupted
  (tmp_path / 'b' / 'jax_cuda12_plugin-0.7.2.dist-info').mkdir()
  (tmp_path / 'b' / 'flax-0.11.2.dist-info').mkdir()
  monkeypatch.setattr(sys, 'path', [str(tmp_path / 'a'), str(tmp_path / 'none'), str(tmp_path / 'b')])
  assert script['installed']() == {
    'jax': '0.7.2',
    'jax-cuda12-plugin': '0.7.2',
    'jaxlib': '0.10.2',
    'libtpu': '0.0.21.1',
    'numpy': '2.1.3',
  }


def test_a_real_install(script, tmp_path):
  """Into a new environment that also imports from this one, as a notebook's kernel with a JAX: JAX stays as it is."""
  subprocess.run([sys.executable, '-m', 'venv', tmp_path / 'kernel'], check=True)
  python = tmp_path / 'kernel' / 'bin' / 'python'
  (site,) = (tmp_path / 'kernel' / 'lib').glob('python*/site-packages')
  (site / 'image.pth').write_text(sysconfig.get_path('purelib') + '\n')
  (site / '~umpy-2.0.2.dist-info').mkdir()
  code = f'import runpy; runpy.run_path({str(PATH)!r})["install"]()'
  env = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
  done = subprocess.run([python, '-c', code], capture_output=True, text=True, cwd=tmp_path, env=env, timeout=280)
  if done.returncode and 'No matching distribution found' in done.stderr and 'setuptools' in done.stderr:
    pytest.skip('no package index: pip cannot get setuptools, which builds the package')
  assert done.returncode == 0, done.stderr[-2000:]
  kept = script['installed']()
  assert done.stdout.splitlines()[-1].endswith(f'with JAX {kept["jax"]}')
  assert not [folder.name for folder in site.iterdir() if folder.name.startswith(('jax', 'numpy', 'flax', 'orbax'))]
  run = lambda *words: subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=env).stdout
  assert run(python.with_name('mathqwen'), '--version').endswith(f', jax {kept["jax"]}\n')
  assert run(python, '-c', 'import mathqwen; print(mathqwen.__file__)').startswith(str(site))


def test_a_restart_only_where_a_loaded_package_was_replaced(script, pip):
  own = script['loaded']()
  assert own['pytest'] == pytest.__version__ and 'google-auth' not in own
  script['check_restart'](own, own | {'another': '2'})
  versions = iter([{'six': '1', 'rich': '2'}, {'six': '3', 'rich': '2'}])
  script['install'].__globals__['loaded'] = lambda: next(versions)
  with pytest.raises(
    UsageError, match='^restart the session now .* pip replaced six 1 by 3, which the kernel has loaded'
  ):
    script['install']()
