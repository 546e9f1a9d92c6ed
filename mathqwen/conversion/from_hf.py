"""`convert from-hf`: a checkpoint directory of ours from a Hugging Face directory, one weight at a time."""

import dataclasses

from mathqwen import hf
from mathqwen.config import Experiment
from mathqwen.conversion import check, check_template
from mathqwen.errors import UserError
from mathqwen.model import parameters
from mathqwen.observe.metrics import peak_rss_bytes
from mathqwen.storage import converted
from mathqwen.storage.source import open_source


def convert_from_hf(source: str, target: str, compare: bool = True) -> dict:
  """Writes `target`, a new checkpoint directory of ours, from a Hugging Face directory; each weight keeps its dtype.

  compare: refuse a result whose logits differ from those of the source in any bit.

  Returns {out, bytes, check, peak_rss_bytes}; check: see `check.compare_sources`, or None where nothing was compared.
  UserError: when the target exists, the source is not a Hugging Face directory or is damaged,
  the disk is full, or the result differs. Then nothing is left behind.
  """
  # 1. Plan: what will be written. What can be refused without reading weights is refused here.
  hf.check_target(target)
  model = open_source(source)
  if model.experiment is not None:
    raise UserError(f'{source} is a checkpoint of ours already: give a Hugging Face directory')
  experiment = Experiment(model.config, init=model.name)
  data = dataclasses.replace(experiment.data, system_prompt=model.system_prompt)
  experiment = dataclasses.replace(experiment, data=data)
  shapes = parameters.abstract(model.config)
  size = sum(hf.weight_at(shapes, path).size * model.weights.dtype(path).itemsize for path in model.weights.paths())

  differences = None
  with hf.new_directory(target, size) as folder:
    # 2. Write: into a temporary directory next to the target.
    converted.write_model(folder, model.weights, experiment, model.tokenizer)
    check_template.check_written(model, folder / 'tokenizer')

    # 3. Check: read what was written. After an error the temporary directory is removed.
    if compare:
      differences = check.check_written(model, str(folder), None)
  # The directory now has its name.

  print(f'{target}: a checkpoint of ours, {size / 2**30:.2f} GiB; {check.verdict_on(differences)}')
  return {'out': target, 'bytes': size, 'check': differences, 'peak_rss_bytes': peak_rss_bytes()}
