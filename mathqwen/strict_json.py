"""JSON that every parser reads: Python's own writes NaN and Infinity as bare words, which are not JSON."""

import json
import math
from typing import Any


def dumps(value: Any) -> str:
  """`value` as JSON on one line, with null for each number that is not finite."""
  return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
  if isinstance(value, dict):
    return {name: _finite(each) for name, each in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(each) for each in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value
