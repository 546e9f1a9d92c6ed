"""Training data without duplicates, test problems and broken rows: `mathqwen data clean`, on Apache Beam.

For other folders to use:

  card                         what the folder of a cleaning says about itself
  clean.clean                  cleans a config's data into a folder
  settings.Cleaning, .split    what is left out; its settings from texts

stages.py has the work itself; it passes what is large through files, and names through Beam.
"""

__all__ = ['card', 'clean', 'settings']
