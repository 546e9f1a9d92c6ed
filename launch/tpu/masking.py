"""Copies a command's output without the values of its secrets. Only the standard library of Python 3.8: see host.py."""

from __future__ import annotations

import base64
import json
import os
import re
import urllib.parse
from collections.abc import Iterable

MASK = b'SECRET'
SHORTEST = 4  # a shorter line of a value is too common in other text to be masked


def forms(values: Iterable[str]) -> list[bytes]:
  """What to mask, the longest first: each value, its lines, and how JSON, addresses and base64 write it."""
  found = set()
  for value in values:
    found.add(base64.b64encode(value.encode()).decode())
    for text in {value, value.strip(), *value.splitlines()}:
      found |= {text, json.dumps(text)[1:-1], urllib.parse.quote(text, safe='')}
  return sorted((text.encode() for text in found if len(text) >= SHORTEST), key=len, reverse=True)


def copy(source: int, target: int, values: Iterable[str]) -> None:
  """Copies from one file descriptor to another until the end, at once, with `MASK` in place of each value."""
  masked = forms(values)
  pattern = re.compile(b'|'.join(map(re.escape, masked))) if masked else None
  held = b''  # what may be the beginning of a value
  while True:
    read = os.read(source, 1 << 16)
    text = held + read
    if pattern:
      text = pattern.sub(MASK, text)
    held = _beginning(text, masked) if read else b''
    _write(target, text[: len(text) - len(held)])
    if not read:
      return


def _beginning(text: bytes, masked: list[bytes]) -> bytes:
  """The longest end of `text` with which one of `masked` begins."""
  for size in range(min(len(text), max(map(len, masked), default=1) - 1), 0, -1):
    if any(form.startswith(text[-size:]) for form in masked if len(form) > size):
      return text[-size:]
  return b''


def _write(target: int, text: bytes) -> None:
  while text:
    text = text[os.write(target, text) :]
