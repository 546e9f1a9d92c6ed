"""%mathqwen in IPython: the same command line, in the same process, and a failure that ends the cell."""

import os

import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

from mathqwen import cli


@pytest.fixture(scope='module')
def shell():
  shell = InteractiveShell.instance()
  shell.run_line_magic('load_ext', 'mathqwen')
  yield shell
  InteractiveShell.clear_instance()


def test_variables_are_filled_in_and_the_process_is_this_one(shell, monkeypatch):
  seen = []
  monkeypatch.setattr(cli, 'main', lambda argv: seen.append((argv, os.getpid())) or 0)
  result = shell.run_cell("RUN = 'demo --set a.b=1'\n%mathqwen train {RUN} --workdir 'a b'")
  assert result.success and seen == [(['train', 'demo', '--set', 'a.b=1', '--workdir', 'a b'], os.getpid())]


def test_a_failure_ends_the_cell(shell, capsys):
  result = shell.run_cell('%mathqwen generate no-such-model hello\nAFTER = 1')
  assert isinstance(result.error_in_exec, UsageError) and 'AFTER' not in shell.user_ns
  assert 'no model at no-such-model' in capsys.readouterr().err


def test_help_is_not_a_failure(shell, capsys):
  assert shell.run_cell('%mathqwen train --help').success
  assert '--workdir' in capsys.readouterr().out
