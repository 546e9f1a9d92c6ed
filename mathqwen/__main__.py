"""`python -m mathqwen`."""

from mathqwen.cli import program

if __name__ == '__main__':
  program()
