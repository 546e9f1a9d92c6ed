"""python launch/colab/badges.py OWNER: whose fork the badges and the notebooks point to.

Changes the owner in the addresses of launch/README.md and launch/colab/*.ipynb. Run it again with another owner.
"""

import pathlib
import re
import sys

FOLDER = pathlib.Path(__file__).resolve().parent
ADDRESS = re.compile(r'(github(?:\.com)?/)[A-Za-z0-9-]+(/mathqwen\b)')
# What GitHub allows: letters, digits and single hyphens between them, 39 characters at most.
OWNER = re.compile(r'(?=.{1,39}$)[A-Za-z0-9]+(-[A-Za-z0-9]+)*')


def main(words: list[str]) -> str:
  """Changes the files; returns what was done. SystemExit with status 2: when the owner's name is missing or wrong."""
  if len(words) != 1 or not OWNER.fullmatch(words[0]):
    print(
      f'badges.py: {" ".join(words) or "no name"}: write the name of a GitHub user or organisation: '
      'letters, digits and single hyphens, for example python launch/colab/badges.py my-name',
      file=sys.stderr,
    )
    raise SystemExit(2)
  changed = 0
  for path in [FOLDER.parent / 'README.md', *sorted(FOLDER.glob('*.ipynb'))]:
    text = path.read_text()
    path.write_text(ADDRESS.sub(rf'\g<1>{words[0]}\g<2>', text))
    changed += len(ADDRESS.findall(text))
  return f'{changed} addresses point to github.com/{words[0]}/mathqwen'


if __name__ == '__main__':
  print(main(sys.argv[1:]))
