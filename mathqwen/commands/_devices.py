"""How the commands that compute start their devices, and say on which they run."""

import argparse

from mathqwen.errors import report
from mathqwen.hardware import chips, devices, hosts


def start(args: argparse.Namespace, after_loss: str = '') -> None:
  """Starts the devices of --platform, on all hosts of --distributed, checks --slice, and prints what they are.

  Their description is the first line on standard error. Call this before anything else uses JAX, and after everything
  that can be checked without it. after_loss: as in `hosts.join`.
  UserError: when the devices cannot be used or are not those asked for, and as in `hosts.join`.
  """
  distributed, slice_name = getattr(args, 'distributed', None), getattr(args, 'slice', None)
  if slice_name:
    chips.slice_of(slice_name, '--slice')  # a misspelled one is refused at once
  devices.choose(args.platform)
  if distributed:
    hosts.join(distributed, after_loss)
  devices.start()
  if slice_name:
    devices.check_slice(slice_name)
  if hosts.share()[0] == 0:
    report(devices.describe())
