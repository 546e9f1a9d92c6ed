"""launch/colab/badges.py: one command points all badges and notebooks to the user's fork."""

import pathlib
import runpy
import shutil
import subprocess
import sys

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / 'launch'


@pytest.fixture
def badges(tmp_path):
  """badges('name') -> the finished process, on a copy of launch/."""
  shutil.copytree(LAUNCH, tmp_path / 'launch', ignore=shutil.ignore_patterns('__pycache__'))

  def run(*words):
    script = tmp_path / 'launch' / 'colab' / 'badges.py'
    return subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True)

  return run


def addresses(folder, owner):
  texts = [path.read_text() for path in (folder / 'README.md', *(folder / 'colab').glob('*.ipynb'))]
  return sum(text.count(f'/{owner}/mathqwen') for text in texts)


def test_an_owner_and_then_another(badges, tmp_path):
  before = addresses(LAUNCH, 'OWNER')
  assert before == 3 * 6 + 2  # qlora.ipynb opens in Colab and in Kaggle
  for owner in ('a-1', 'Someone'):
    done = badges(owner)
    assert done.stdout == f'{before} addresses point to github.com/{owner}/mathqwen\n'
    assert addresses(tmp_path / 'launch', owner) == before
  assert addresses(tmp_path / 'launch', 'OWNER') == addresses(tmp_path / 'launch', 'a-1') == 0


@pytest.mark.parametrize(
  'words', [[], ['a', 'b'], ['-a'], ['a--b'], ['a_b'], ['a/b'], ['https://github.com/a'], ['a' * 40], ['']]
)
def test_wrong_names(badges, words, tmp_path):
  done = badges(*words)
  assert done.returncode == 2 and done.stderr.startswith('badges.py: ') and len(done.stderr.splitlines()) == 1
  assert addresses(tmp_path / 'launch', 'OWNER') == addresses(LAUNCH, 'OWNER')


def test_the_badges_are_for_all_notebooks():
  script = runpy.run_path(str(LAUNCH / 'colab' / 'badges.py'))
  for path in (LAUNCH / 'colab').glob('*.ipynb'):
    badges = 2 if path.stem == 'qlora' else 1
    assert len(script['ADDRESS'].findall(path.read_text())) == badges + 1, path  # and REPOSITORY
