"""From an `Experiment` to a run: puts model, tokenizer, data and mesh together, checks that they fit, trains."""

import dataclasses
import math
import sys

import jax

from mathqwen import config as config_lib
from mathqwen import files
from mathqwen.chat import chat_format
from mathqwen.chat.chat_format import ChatFormat
from mathqwen.config import DataConfig, Experiment
from mathqwen.data.inspect import describe
from mathqwen.data.training_data import TrainingData
from mathqwen.errors import UserError, report
from mathqwen.files import hub
from mathqwen.hardware import hosts, sharding
from mathqwen.model import attention
from mathqwen.observe import profiling
from mathqwen.storage import base as bases
from mathqwen.storage import checkpoint, provenance
from mathqwen.storage import workdir as workdirs
from mathqwen.storage.source import Source, open_source
from mathqwen.text.loading import load_tokenizer
from mathqwen.text.tokenizer import Tokenizer
from mathqwen.training import elastic, guard, loop, offload, optim, reproduce, step


@dataclasses.dataclass
class TrainingRun:
  """A run without its weights and data, checked to fit together. Nothing large is allocated yet."""

  experiment: Experiment  # its `model` is that of `init`
  tokenizer: Tokenizer
  mesh: jax.sharding.Mesh
  batch: elastic.Batch
  chat: ChatFormat
  source: Source | None = None  # of the initial weights, and of those that stay as they are; None: draw random ones

  @classmethod
  def prepare(
    cls,
    experiment: Experiment,
    dry: bool = False,
    workdir: str | None = None,
    original: reproduce.Original | None = None,
  ) -> 'TrainingRun':
    """Opens `init`, and checks that model, tokenizer, batch and devices fit together.

    dry: fetch nothing from the Hugging Face hub; where its cache has no `init`, use the config's sizes and this
      package's tokenizer instead.
    workdir: where the run may be continued; its batch and mesh then adapt to other devices (`elastic`).
    original: a run that this one makes again, with its template.
    UserError: when there is no such model, it has no tokenizer, or some sizes do not fit.
    """
    sharding.mesh_shape(experiment.mesh, jax.device_count())  # for its error, before anything is fetched
    if experiment.train.adapter.rank and experiment.init is None:
      raise UserError('train.adapter.rank: an adapter is trained on a model: give one with --init MODEL')
    if experiment.train.objective == 'dpo' and experiment.init is None:
      raise UserError('train.objective=dpo compares with the model that it begins with: give one with --init MODEL')
    if experiment.optim.offload:
      offload.check()
    experiment, tokenizer, source = _open(experiment, dry)
    if tokenizer.vocab_size > experiment.model.vocab_size:
      raise UserError(
        f'the tokenizer knows {tokenizer.vocab_size} tokens and model.vocab_size is {experiment.model.vocab_size}: '
        f'set model.vocab_size={tokenizer.vocab_size} or more'
      )
    experiment.check_model(experiment.model)
    chat = _chat(experiment.data, tokenizer, original.workdir if original is not None else workdir)
    mesh, batch = _mesh_and_batch(experiment, _last_session(workdir))
    return cls(experiment, tokenizer, mesh, batch, chat, source)

  def data(self) -> TrainingData:
    """Reads and tokenizes this host's share of the data."""
    shard = jax.process_index(), jax.process_count()
    pairs = self.experiment.train.objective == 'dpo'
    return TrainingData(self.experiment.data, self.tokenizer, shard, self.batch.rows, self.chat, pairs)

  def train(
    self,
    workdir: str,
    profile: int | None = None,
    strict: bool = False,
    original: reproduce.Original | None = None,
  ) -> dict:
    """Trains in `workdir`, or continues the run there. Returns the summary of `loop.fit`, and raises what it raises.

    profile: steps to trace, from the third step of this process on.
    strict: as in `loop.fit`.
    original: a run that this one makes again: says what differs, before the first step and after the last.
    UserError: also when `workdir` holds another run, or its run is too short for `profile`.
    """
    with guard.guarded(workdir, self.experiment) as guarded:
      guarded.watchdog.beat('reading the data', slow=True)
      return self._train(workdir, profile, strict, original)

  def _train(self, workdir: str, profile: int | None, strict: bool, original: reproduce.Original | None) -> dict:
    workdirs.check_claim(workdir, self.experiment)
    latest = hosts.gather(checkpoint.Checkpoints(workdir).latest)[0]
    if profile is not None:
      profiling.check(profile, self.experiment.train.steps - (latest or 0))
    data = self.data()
    hosts.agree('data', data.fingerprint)
    for line in data.describe():
      report(line)
    params, base = self._read(workdir, is_new=latest is None)
    if original is not None:
      batch = dataclasses.asdict(self.batch)
      session = provenance.collect(self.experiment, self.mesh, batch, data.fingerprint, 0)
      self._report(reproduce.differences(original, session, base))

    # Only now: a run that is refused leaves the workdir as it was.
    workdirs.claim(workdir, self.experiment)
    if jax.process_index() == 0:
      workdirs.write_tokenizer(workdir, self.tokenizer, self.chat)
    summary = loop.fit(self.experiment, workdir, data, self.mesh, params, profile or 0, strict, self.batch, base)
    if original is None:
      return summary
    compared, lines = reproduce.compare(original, workdir)
    self._report(lines)
    return summary | {'reproduce': compared}

  def _read(self, workdir: str, is_new: bool) -> tuple[dict | None, bases.Base | None]:
    """(first weights of a new run that trains all of them, float32; those that stay as they are), on the mesh."""
    source, frozen = self.source, self.experiment.train.frozen
    params = None
    if is_new and source is not None and not self.experiment.train.adapter.rank:
      params = source.read(self.mesh, 'float32')
    if frozen is None:
      return params, None
    if params is not None:  # the files of a large model are read once
      return params, bases.copied(params, source.weights, source.name, frozen)
    return None, bases.read(source.weights, source.name, source.config, self.mesh, frozen, workdir)

  def _report(self, lines: list[str]):
    """Prints lines, once for all hosts."""
    if jax.process_index() == 0:
      for line in lines:
        report(line)

  def plan(self) -> dict[str, int]:
    """Number of parameters, and bytes per device that the compiled step needs. Compiles, but allocates no arrays."""
    experiment, cfg = self.experiment, self.experiment.model
    tx = optim.optimizer(experiment.optim, experiment.train.steps)
    state = step.abstract_state(self.mesh, cfg, tx, experiment.train.adapter)
    inputs = step.abstract_inputs(self.mesh, experiment, self.batch.rows)
    compiled = (
      step.compile_step(self.mesh, cfg, experiment, tx, self.batch.micro_batches).lower(state, *inputs).compile()
    )
    memory = compiled.memory_analysis()
    # Donated arguments are outputs too: counted once.
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    # Offloaded moments are no memory of a device; a TPU's compiler leaves them out itself, a CPU's counts them.
    on_host = step.bytes_per_device(state.opt_state, of_host=True)
    arguments = memory.argument_size_in_bytes - (on_host - memory.host_argument_size_in_bytes)
    train = experiment.train
    base = step.abstract_base(self.mesh, cfg, train.frozen) if train.frozen else {}
    trained, frozen = (sum(math.prod(x.shape) for x in jax.tree.leaves(tree)) for tree in (state.params, base))
    return {
      'parameters': trained + frozen if train.adapter.rank else trained,
      'trained_parameters': trained,
      'weights_bytes': step.bytes_per_device((base, state.params)),
      'frozen_bytes': step.bytes_per_device(base),
      'moments_bytes': step.bytes_per_device(state.opt_state),
      'host_moments_bytes': on_host,
      'arguments_bytes': arguments,
      'temporaries_bytes': memory.temp_size_in_bytes,
      'total_bytes': arguments + memory.temp_size_in_bytes + outputs,
    }


def _last_session(workdir: str | None) -> dict | None:
  """The last session of the run in `workdir`, as host 0 finds it; None for a new run, which has no checkpoint."""
  reads = workdir is not None and hosts.share()[0] == 0
  sessions = provenance.read_sessions(workdir) if reads and checkpoint.Checkpoints(workdir).latest is not None else []
  return hosts.gather(sessions[-1] if sessions else None)[0]


def _chat(data: DataConfig, tokenizer: Tokenizer, workdir: str | None) -> ChatFormat:
  """What a run is trained with; the run in `workdir`, if it has checkpoints, keeps its template.

  UserError: when there is no such template, or it is not that of the run.
  """
  reads = workdir is not None and hosts.share()[0] == 0
  saved, digest = hosts.gather(workdirs.saved_template(workdir) if reads else (None, None))[0]
  if data.template == 'chatml':
    saved = digest = None
  chat = chat_format.for_training(data.template, data.system_prompt, tokenizer, saved)
  if saved is None and digest not in (None, chat.record()['template_sha256']):
    raise UserError(
      f'{workdirs.template_file(workdir)} is damaged or missing, and data.template={data.template} is another text '
      'now: copy the file again'
    )
  return chat


def _mesh_and_batch(experiment: Experiment, before: dict | None) -> tuple[jax.sharding.Mesh, elastic.Batch]:
  """Those of a run on these devices; before: its last session. UserError: when some sizes do not fit."""
  base = experiment.train.adapter.base
  mesh_config = experiment.mesh
  if before is not None:
    mesh_config = elastic.mesh_of(mesh_config, experiment.model, jax.device_count(), base)
  mesh = sharding.make_mesh(mesh_config)
  shape = dict(mesh.shape)
  # Called for its error: it refuses an attention that these devices cannot run.
  answered = experiment.data.seq_len if experiment.data.share_prompts else None
  attention.select(experiment.train.attention, mesh, experiment.train.compute_dtype, answered)
  batch = elastic.batch_of(experiment, shape, jax.process_count(), before)
  sharding.check(shape, experiment.model, batch.rows, batch.micro_batches, experiment.data.seq_len, base)
  for note in (elastic.describe(experiment, shape, batch, before), sharding.undivided(shape, experiment.model)):
    if note and jax.process_index() == 0:
      report(note)
  return mesh, batch


def _open(experiment: Experiment, dry: bool) -> tuple[Experiment, Tokenizer, Source | None]:
  """As `_open_init`; without `init`, or with one that `dry` does not fetch, the tokenizer of this package."""
  name = hub.name_of(experiment.init) if dry and experiment.init is not None else None
  if name and (folder := hub.cached(name)):
    opened, tokenizer, source = _open_init(dataclasses.replace(experiment, init=folder))
    return dataclasses.replace(opened, init=experiment.init), tokenizer, source
  if experiment.init is not None and not name:
    return _open_init(experiment)
  if name:
    report(
      f"{experiment.init} is not on this machine: sizes are the config's, and text is shown with the small tokenizer "
      'of this package'
    )
  return experiment, load_tokenizer(None), None


def _open_init(experiment: Experiment) -> tuple[Experiment, Tokenizer, Source]:
  """(experiment with the model of `init`, its tokenizer, where its weights are)."""
  source = open_source(experiment.init)
  if source.tokenizer is None:
    raise UserError(f'{experiment.init} has no tokenizer files, which training needs: copy those of its model there')
  # Of a model on the hub keep the name, not the folder in the hub's cache.
  init = source.name if source.name.startswith(files.HUB) else experiment.init
  return dataclasses.replace(experiment, model=source.config, init=init), source.tokenizer, source


def dry_run(run: TrainingRun) -> dict:
  """Prints the first packed row, sizes, memory and the settings of a run; trains nothing. Returns the numbers.

  The data comes first, because a large step takes minutes to compile.
  """
  experiment = run.experiment
  data = run.data()
  for line in data.describe():
    print(line)
  steps = experiment.train.steps
  rows = experiment.data.batch_size
  seq_len = experiment.data.seq_len
  epochs = steps * rows * seq_len / data.tokens
  print(f'{steps:,} steps of {rows} x {seq_len} positions: {epochs:,.1f} epochs')
  print('the first packed row, tokens with loss in [[ ]] (green on a terminal):')
  batches = data.train()
  first = {name: values[0] for name, values in next(batches).items()}
  batches.close()
  print(describe(first, run.tokenizer, sys.stdout.isatty()), flush=True)

  numbers = run.plan()
  shape = ' x '.join(f'{name} {size}' for name, size in run.mesh.shape.items())
  gib = {name: f'{size / 2**30:.2f} GiB' for name, size in numbers.items() if name.endswith('_bytes')}
  adapter = experiment.train.adapter
  trained = f', of which adapters are trained: {numbers["trained_parameters"]:,}' if adapter.rank else ''
  print(f'parameters: {numbers["parameters"]:,}{trained}')
  print(f'mesh: {shape}; memory per device, from the step compiled for {jax.default_backend()}:')
  frozen = experiment.train.frozen
  held = f'weights, of which {gib["frozen_bytes"]} frozen in {frozen.base}' if frozen else 'float32 weights'
  offloaded = f', and {gib["host_moments_bytes"]} of them on the host' if numbers['host_moments_bytes'] else ''
  print(f'  {gib["weights_bytes"]} {held}, {gib["moments_bytes"]} AdamW moments{offloaded}')
  print(f'  {gib["temporaries_bytes"]} activations, gradients and other temporaries')
  print(f'  {gib["total_bytes"]} in all')
  print('all settings:')
  print(config_lib.to_json(experiment), end='')
  return numbers | {'vocab_size': experiment.model.vocab_size}
