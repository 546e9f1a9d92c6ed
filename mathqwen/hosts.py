"""Several hosts as one run."""

import jax

from mathqwen.errors import UserError

TIMEOUT = 300  # seconds that the hosts wait for each other


def join(where: str):
  """Joins this process to the others; to be called on every host, before anything else touches a device.

  where: 'auto' asks the machine (a TPU pod slice, GKE, Slurm know their hosts); 'HOST:PORT,N,I' names the coordinator,
  the number of processes and this one's number.
  """
  try:
    if where == 'auto':
      jax.distributed.initialize(initialization_timeout=TIMEOUT)
      return
    coordinator, count, index = where.split(',')
    count, index = int(count), int(index)
  except ValueError as error:
    raise UserError(
      f'--distributed {where}: {error}; write HOST:PORT,N,I where the machine does not know its hosts'
    ) from None
  if not 0 <= index < count:
    raise UserError(f'--distributed {where}: process {index} is not one of 0 to {count - 1}')
  jax.distributed.initialize(coordinator, count, index, initialization_timeout=TIMEOUT)
