"""A MODEL where it is stored: a Hugging Face directory, a name on the hub, or a checkpoint directory of ours."""

import dataclasses
import itertools

import jax

from mathqwen import files, hf
from mathqwen.chat import chat_format
from mathqwen.chat.chat_format import ChatFormat
from mathqwen.config import Experiment, MeshConfig
from mathqwen.errors import NoTokenizer, UserError, report
from mathqwen.files import hub
from mathqwen.hardware import sharding
from mathqwen.model.config import ModelConfig
from mathqwen.storage import base as bases
from mathqwen.storage import converted
from mathqwen.storage import workdir as workdirs
from mathqwen.text.loading import load_tokenizer
from mathqwen.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Source:
  """A MODEL where it is stored. Everything small is read and checked; the weights are read when asked for."""

  name: str
  config: ModelConfig
  tokenizer: Tokenizer | None  # None: there are no tokenizer files
  system_prompt: str
  weights: hf.Weights  # for reading one at a time
  experiment: Experiment | None = None  # None: a Hugging Face directory
  step: int | None = None  # of the checkpoint; 0 for a converted model, None for a Hugging Face directory

  @property
  def stop_ids(self) -> tuple[int, ...]:
    """Answers end at any of these: see `Tokenizer.stop_ids`; () without a tokenizer. UserError: when there is none."""
    return () if self.tokenizer is None else self.tokenizer.stop_ids

  @property
  def export_dtype(self) -> str | None:
    """The dtype of an export's files when none is asked for; None: each weight's own.

    The masters of a run and merged adapters are float32; the models that they came from have half as many bytes.
    """
    if isinstance(self.weights, hf.DirectoryWeights):
      return self.weights.export_dtype
    return 'bfloat16' if self.is_run else None

  @property
  def is_run(self) -> bool:
    """Whether a run of ours made these weights: a converted model, which was not trained here, is at step 0."""
    return bool(self.step)

  def chat(self, template: str | None = None, system: str | None = None, at_once: bool = True) -> ChatFormat:
    """What it was trained with; for a published model see `chat_format.published`. Or another template, system turn.

    at_once: whether a published template that cannot be used is refused now, and not when a prompt is made of it.
    UserError: when there is no tokenizer, or the chat template cannot be used.
    """
    if self.tokenizer is None:
      raise UserError(f'{self.name} has no tokenizer files: copy those of its model there')
    if template is not None:  # the default may be what cannot be used
      default = ChatFormat(system_prompt=self.system_prompt)
    elif self.is_run:
      default = chat_format.trained(self.experiment.data.template, self.system_prompt, self.tokenizer)
    else:
      of_files = chat_format.published if at_once else chat_format.published_or_unusable
      default = of_files(self.system_prompt, self.tokenizer)
    return default.changed(self.tokenizer, template, system)

  def trained_chat(self) -> ChatFormat | None:
    """What a run of ours trained it with; None for a model that was not trained here, which keeps its own files."""
    return self.chat() if self.is_run and self.tokenizer is not None else None

  def read(self, mesh: jax.sharding.Mesh | None = None, dtype: str | None = None, held: str | None = None) -> dict:
    """All weights, in `dtype` or in their own dtypes, on `mesh` or on one device; then closes the files.

    held: one of `quantized.KINDS` quantises matrices and tables, each before the next is read.

    UserError: when a file is damaged.
    """
    if mesh is None:
      mesh = sharding.make_mesh(MeshConfig(), jax.local_devices()[:1])
    params = bases.read_held(self.weights, self.config, mesh, dtype, held, tables=True)
    self.weights.close()
    return params


def open_source(path: str, quiet: bool = False) -> Source:
  """Finds and checks what `path` names: a directory, a URL, or a name on the hub, which is then downloaded.

  quiet: without the line about an adapter that is merged.
  UserError: when it is not a model, or files are missing or do not fit together.
  """
  hub_name = hub.name_of(str(path))
  place = files.path(hub.fetch(hub_name) if hub_name else path)
  path = str(place)
  name = files.HUB + hub_name if hub_name else path
  if not place.is_dir():
    raise UserError(f'no model at {path}: give a Hugging Face directory, or the --workdir of a run')
  adapter = hf.read_adapter(place)
  if adapter is not None or files.is_there(place / 'config.json'):
    return _hugging_face(name, place, adapter, quiet)

  if found := workdirs.find_checkpoint(path):
    workdir, experiment, step = found
    workdirs.check_tokenizer(workdir, step)
    # A converted model has a single step, which is not worth naming.
    name = workdir if workdirs.is_converted(workdir) else str(workdirs.step_path(path, step))
    tokenizer = _tokenizer(path, files.join(workdir, workdirs.TOKENIZER), experiment.model)
    weights = _weights_of_run(workdir, step, experiment)
    return Source(name, experiment.model, tokenizer, experiment.data.system_prompt, weights, experiment, step)
  # Trainers write theirs into folders: checkpoint-500, checkpoint-1000.
  inside = [child.name for child in itertools.islice(place.iterdir(), 100) if _is_published(child)]
  more = f'; inside of it are {", ".join(sorted(inside)[:5])}' if inside else ''
  raise UserError(
    f'{path} holds neither config.json (Hugging Face) nor {workdirs.EXPERIMENT} (a run of ours): '
    f'give a Hugging Face directory, or the --workdir of a run{more}'
  )


def _weights_of_run(workdir: str, step: int, experiment: Experiment) -> hf.Weights:
  """The weights of a step; where it has adapters, merged with its base. UserError: when the base is not there."""
  adapter = experiment.train.adapter
  trained = converted.StepWeights(workdir, step, experiment.model, adapter)
  if not adapter.rank:
    return trained
  recorded = trained.json(bases.ITEM)['name']
  try:
    source = open_source(bases.place_of(recorded, workdir))
  except UserError as error:
    beside = 'a copy of it' if workdir.startswith(files.GCS) else 'a link to it'  # there are no links on GCS
    raise UserError(
      f'the base of {workdir}, {recorded}, cannot be opened ({error}); put it back, or {beside} at '
      f'{files.join(workdir, bases.ITEM)}'
    ) from None
  return bases.MergedWeights(source.weights, source.name, trained, workdir, experiment.model, adapter)


def _is_published(place: files.AnyPath) -> bool:
  """Whether a directory has a Hugging Face model or adapter."""
  return any(files.is_there(place / name) for name in (hf.ADAPTER_CONFIG, 'config.json'))


def _hugging_face(name: str, place: files.AnyPath, adapter: hf.Adapter | None, quiet: bool) -> Source:
  """The model in a Hugging Face directory. adapter: that in the directory, beside its base or alone."""
  # Some trainers copy the base's config.json beside the adapter, without its weights.
  base = place if adapter is None or hf.has_weights(place) else _base_of(adapter)
  weights = hf.DirectoryWeights(str(base), adapter)
  if adapter is not None and jax.process_index() == 0 and not quiet:
    report(adapter.describe(str(base)))
  tokenizer = _tokenizer(str(place), str(place), weights.config)
  # The template of an adapter's directory has the system turn that the adapter was trained with, if there was one.
  has_own_prompt = base != place and tokenizer is not None and tokenizer.has_template
  system_prompt = '' if has_own_prompt else hf.read_system_prompt(str(base))
  if base != place:  # trainers write a tokenizer beside an adapter, but seldom a generation_config.json
    of_base = _tokenizer(str(base), str(base), weights.config)
    if tokenizer is None:
      tokenizer = of_base
    elif of_base is not None and not tokenizer.declared_stops:
      tokenizer.declared_stops = of_base.declared_stops
  return Source(name, weights.config, tokenizer, system_prompt, weights)


def _base_of(adapter: hf.Adapter) -> files.AnyPath:
  """The directory of an adapter's base, which is fetched where it is on the hub. UserError: when it is not found."""
  base = adapter.base
  beside = not base.startswith(('/', files.GCS, files.HUB)) and '..' not in base
  places = [adapter.directory / base] if beside else []
  if not base.startswith(files.HUB):
    places.append(files.path(base))
  for place in places:
    if files.is_there(place / hf.ADAPTER_CONFIG) and place != adapter.directory:
      raise UserError(f'{place}, the base of {adapter.directory}, is an adapter itself: merge that first')
    if files.is_there(place / 'config.json'):
      return place
  if hub_name := hub.name_of(adapter.base_on_hub):
    return files.path(hub.fetch(hub_name))
  raise UserError(f'{adapter.directory}: its base {base} is not there: {adapter.remedy}')


def _tokenizer(path: str, directory: str, config: ModelConfig) -> Tokenizer | None:
  """The tokenizer of `directory`, for the model of `path`. UserError: when the model has no rows for ids of text."""
  try:
    tokenizer = load_tokenizer(directory)
  except NoTokenizer:
    return None
  try:
    fitted = tokenizer.fitted(config.vocab_size)
  except UserError as error:
    raise UserError(f'{path}: {error}') from None
  for token_id in tokenizer.declared_stops:
    if token_id not in fitted.declared_stops:
      report(f'{path}: the stop id {token_id} is not below vocab_size {config.vocab_size}: it is ignored')
  return fitted
