"""Symbolic comparisons of these tests may take a minute, so that no verdict depends on how busy the machine is."""

import pytest

PATIENT = 60.0  # seconds; a comparison takes about 0.02 s on an idle core


@pytest.fixture(scope='session')
def patient_pool():
  from mathqwen.grading import symbolic

  pool = symbolic.ComparerPool(time_limit=PATIENT)
  yield pool
  pool.close()


@pytest.fixture(autouse=True)
def patient(monkeypatch, patient_pool):
  """`symbolic.equal`, and so every rule, waits for PATIENT seconds. Tests of the limit make a Comparer of their own."""
  from mathqwen.grading import symbolic

  monkeypatch.setattr(symbolic, '_shared', patient_pool)
