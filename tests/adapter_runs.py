"""Runs with adapters on a base in a Hugging Face directory, and what they trained."""

from mathqwen.storage import converted
from mathqwen.storage import workdir as workdirs


def command(tiny, base, workdir, *settings):
  """The words that train adapters on `base`."""
  sets = [f'--set={setting}' for setting in settings]
  return ['train', tiny.config, '--init', str(base), '--workdir', str(workdir), *sets]


def adapters_of(workdir):
  """{path: array} of the newest checkpoint: the adapters alone."""
  _, experiment, step = workdirs.find_checkpoint(str(workdir))
  read = converted.StepWeights(str(workdir), step, experiment.model, experiment.train.adapter)
  found = {path: read.read(path) for path in read.paths()}
  read.close()
  return found
