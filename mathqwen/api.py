"""The Python face of mathqwen, for notebooks and programs: what the commands do, as functions."""

from mathqwen.inference.model import Model, load

__all__ = ['Model', 'load']
