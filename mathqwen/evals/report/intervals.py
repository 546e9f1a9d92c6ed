"""95% confidence intervals of accuracies. Standard library only."""

import math

Z = 1.959963984540054  # 97.5% quantile of the standard normal distribution


def wilson(n: float, correct: float) -> tuple[float, float]:
  """Wilson's score interval of `correct` of `n`, as fractions of 1.

  Unlike accuracy ± 1.96 standard errors it has a width at 0% and 100%, and does not pass them.
  """
  accuracy = correct / n
  middle = (accuracy + Z * Z / (2 * n)) / (1 + Z * Z / n)
  half = Z * math.sqrt(accuracy * (1 - accuracy) / n + Z * Z / (4 * n * n)) / (1 + Z * Z / n)
  return max(0.0, middle - half), min(1.0, middle + half)


def interval(scores: dict, samples: int) -> tuple[float, float]:
  """The interval of the accuracy in `scores`, of a benchmark or of one of its groups, as fractions of 1.

  samples: answers to each problem. Several answers to one problem depend on each other, so Wilson's interval is taken
  with the effective sample size: the number of independent answers that would have the standard error over problems
  (Dean and Pagano, 2015). It is at least the number of problems and at most the number of answers.
  """
  n = scores['n']
  accuracy = scores['accuracy']
  stderr = scores.get('stderr')
  if samples > 1:
    problems = n / samples
    n = min(n, max(problems, accuracy * (1 - accuracy) / stderr**2)) if stderr else problems
  return wilson(n, accuracy * n)
