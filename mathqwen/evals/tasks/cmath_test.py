"""CMATH's test split: the 1,098 problems that its authors published after the first 600."""

import dataclasses

from mathqwen.evals.tasks import cmath

ORDER = 17

BENCHMARK = dataclasses.replace(
  cmath.BENCHMARK,
  name='cmath_test',
  title='CMATH (test)',
  source='cmath_test',  # which is a split of CMATH
  size=1098,
  published={},
  published_in='',
)
