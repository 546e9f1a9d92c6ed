"""Writes colab.txt again, from the list of packages that Colab publishes for its TPU runtime.

python tests/constraints/refresh.py [FILE or URL, by default Colab's]      a FILE: what `pip freeze` prints on Colab
"""

import datetime
import pathlib
import re
import sys
import urllib.request

PUBLISHED = 'https://raw.githubusercontent.com/googlecolab/backend-info/main/pip-freeze.tpu.txt'
KEPT = ('jax', 'jaxlib', 'flax', 'orbax-checkpoint', 'numpy')
HEADER = """\
# What Colab's TPU runtime has, of its list of {date} (Python 3.13). libtpu is left out: Colab's, {libtpu}, is not the
# one that jax[tpu] asks for. To write this file again: python tests/constraints/refresh.py
"""


def constraints(freeze: str, date: str) -> str:
  """The text of colab.txt. ValueError: when the list lacks one of the packages."""
  pinned = dict(re.findall(r'^([\w.-]+)==(\S+)$', freeze, re.MULTILINE))
  versions = {re.sub('[-_.]+', '-', name).lower(): version for name, version in pinned.items()}
  if missing := [name for name in KEPT if name not in versions]:
    raise ValueError(f'the list has no version of {", ".join(missing)}')
  lines = [f'{name}=={versions[name]}\n' for name in KEPT]
  return HEADER.format(date=date, libtpu=versions.get('libtpu', 'not listed')) + ''.join(lines)


def main():
  source = sys.argv[1] if len(sys.argv) > 1 else PUBLISHED
  if '://' in source:
    with urllib.request.urlopen(source, timeout=60) as answer:
      freeze = answer.read().decode()
  else:
    freeze = pathlib.Path(source).read_text()
  path = pathlib.Path(__file__).with_name('colab.txt')
  path.write_text(constraints(freeze, datetime.date.today().isoformat()))
  print(f'wrote {path}; if Colab has another Python now, change it here and in .ci/run')


if __name__ == '__main__':
  main()
