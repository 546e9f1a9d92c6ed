"""A MODEL where it is stored: a Hugging Face directory, a name on the hub, or a checkpoint directory of ours."""

import dataclasses
import pathlib

import jax
from etils import epath

from mathqwen import hf
from mathqwen.config import Experiment, MeshConfig
from mathqwen.errors import NoTokenizer, UserError
from mathqwen.hardware import sharding
from mathqwen.hf import hub
from mathqwen.model import qwen
from mathqwen.model.config import ModelConfig
from mathqwen.storage import checkpoint
from mathqwen.text.loading import load_tokenizer
from mathqwen.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Source:
  """A MODEL where it is stored. Everything small is read and checked; `weights` reads one, `read` all of them."""

  name: str
  config: ModelConfig
  tokenizer: Tokenizer | None  # None: there are no tokenizer files
  system_prompt: str
  weights: hf.Checkpoint | checkpoint.Stored  # each has dtype(path), read(path) and close()
  experiment: Experiment | None = None  # of a run of ours
  step: int | None = None

  def read(self, mesh: jax.sharding.Mesh | None = None, dtype: str | None = None) -> dict:
    """All weights in `dtype`, or in their own, on `mesh` or on one device."""
    mesh = sharding.make_mesh(MeshConfig(), jax.local_devices()[:1]) if mesh is None else mesh
    where = sharding.params_shardings(mesh, self.config)
    if isinstance(self.weights, hf.Checkpoint):
      return self.weights.read_all(where, dtype)
    return self.weights.read_all(qwen.abstract(self.config), where, dtype)


def open_source(path: str) -> Source:
  """Finds and checks what `path` names; UserError if that is no model, or not a whole one."""
  path = str(epath.Path(path)) if '://' not in str(path) else str(path)
  name = path
  if hub_name := hub.name_of(path):
    name, path = hub.PREFIX + hub_name, hub.fetch(hub_name)
  if '://' not in path and not pathlib.Path(path).is_dir():
    raise UserError(f'no model at {path}: give a Hugging Face directory, or the --workdir of a run')
  if '://' not in path and (pathlib.Path(path) / 'config.json').exists():
    config, prompt = hf.read_config(path), hf.read_system_prompt(path)
    tokenizer = _tokenizer(path, path, config)
    return Source(name, config, tokenizer, prompt, hf.Checkpoint(path))
  if found := checkpoint.find(path):
    workdir, experiment, step = found
    name = workdir if checkpoint.is_converted(workdir) else str(checkpoint.step_path(path, step))
    tokenizer = _tokenizer(path, str(epath.Path(workdir) / 'tokenizer'), experiment.model)
    stored = checkpoint.Stored(workdir, step)
    return Source(name, experiment.model, tokenizer, experiment.data.system_prompt, stored, experiment, step)
  raise UserError(
    f'{path} holds neither config.json (Hugging Face) nor {checkpoint.EXPERIMENT} (a run of ours): '
    'give a Hugging Face directory, or the --workdir of a run'
  )


def _tokenizer(path: str, directory: str, config: ModelConfig) -> Tokenizer | None:
  try:
    tokenizer = load_tokenizer(directory)
  except NoTokenizer:
    return None
  if tokenizer.vocab_size > config.vocab_size:
    raise UserError(
      f"{path}: its tokenizer knows {tokenizer.vocab_size} tokens and its model's vocab_size is {config.vocab_size}: "
      'these are files of different models, fetch them again'
    )
  return tokenizer
