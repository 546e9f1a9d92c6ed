"""The short form of tests/chaos.py: a SIGKILL, a flipped bit, a SIGTERM and a file cut short."""

import pathlib
import subprocess
import sys

import pytest

CHAOS = pathlib.Path(__file__).with_name('chaos.py')


@pytest.mark.timeout(900)
def test_four_faults():
  done = subprocess.run([sys.executable, str(CHAOS), '--faults', '4', '--seed', '1'], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr[-3000:]
  assert '4 faults with seed 1' in done.stdout
