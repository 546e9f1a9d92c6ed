"""A workdir as a process leaves it that died."""

import shutil

import pytest


@pytest.fixture
def copied(trained, tmp_path):
  """copied(7): the workdir as a process leaves it that died after step 7 was saved, its later lines included."""

  def copy(step):
    workdir = tmp_path / f'until{step}'
    shutil.copytree(trained, workdir)
    for later in (workdir / 'checkpoints').iterdir():
      if int(later.name) > step:
        shutil.rmtree(later)
    return workdir

  return copy
