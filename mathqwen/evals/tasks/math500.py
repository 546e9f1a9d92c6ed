"""MATH-500: the 500 test problems of MATH that Lightman et al. 2023 (arXiv 2305.20050) held out.

It is asked and graded as MATH is. The MATH column of Table 12 is on these 500 for the Qwen rows, and as each system
reported it for the others.
"""

import dataclasses

from mathqwen.evals.tasks import math

ORDER = 2

BENCHMARK = dataclasses.replace(
  math.BENCHMARK,
  name='math500',
  title='MATH',
  source='math500',  # which is a split of MATH
  size=500,
  table12={
    ('GPT-4', '-'): 42.5,
    ('GPT-3.5', '-'): 34.1,
    ('Minerva', '8B'): 14.1,
    ('Minerva', '62B'): 27.6,
    ('Minerva', '540B'): 33.6,
    ('LLaMA-1 RFT', '7B'): 5.2,
    ('LLaMA-1 RFT', '13B'): 5.1,
    ('WizardMath', '7B'): 10.7,
    ('WizardMath', '13B'): 14.0,
    ('WizardMath', '70B'): 22.7,
    ('GAIRMath-Abel', '7B'): 13.0,
    ('GAIRMath-Abel', '13B'): 17.3,
    ('GAIRMath-Abel', '70B'): 28.3,
    ('Qwen-Chat', '7B'): 6.8,
    ('Qwen-Chat', '14B'): 18.4,
    ('Math-Qwen-Chat', '7B'): 17.2,
    ('Math-Qwen-Chat', '14B'): 24.2,
  },
)
