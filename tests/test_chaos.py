"""The short form of tests/chaos.py, and what it must notice."""

import pathlib
import subprocess
import sys

CHAOS = pathlib.Path(__file__).with_name('chaos.py')


def test_eight_faults():
  done = subprocess.run([sys.executable, str(CHAOS), '--faults', '8', '--seed', '1'], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr[-3000:]
  assert '8 faults with seed 1' in done.stdout
