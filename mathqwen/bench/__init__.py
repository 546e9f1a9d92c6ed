"""`mathqwen bench`: tokens per second on this machine, compared with torch and transformers.

For other folders to use; nothing is imported here, so that each module costs only what it needs:

  measurement.run   measures 'train' or 'decode', prints a line for each side, returns the JSON of the command
  sides             our training step and decoding as functions to time, and the rows and prompts they take

Only for these:

  torch_side        the same in torch and transformers
  turns             sides timed in turn, each in a process of its own
"""

__all__ = ['measurement', 'sides']
