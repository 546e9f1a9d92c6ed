"""Experiments: typed, frozen dataclasses whose fields declare what each setting means and may be.

`load` reads an experiment from configs/, `override` applies `--set a.b=value`. Every setting is read by the code that
it configures: a name that does not exist, or that nothing reads given the other settings, is an error that names the
nearest one.

To add a setting, declare it here (data.*, optim.* and train.adapter.* in `*_config.py` beside this), with
`setting(...)` (see `settings.py`), and read it where it acts. Its checks, `--set`, the help, and what a resumed run may
change (`storage/resume.py`) follow from the declaration; write its page again with
`python -m mathqwen.commands.configs > configs/README.md`. Checks of several settings at once stand in
`Experiment._check_together`, and settings that others switch off in `_refuse_unread`.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence

from mathqwen import config_files
from mathqwen.adapter_config import NO_ADAPTER, AdapterConfig
from mathqwen.data_config import SEED, DataConfig
from mathqwen.errors import UserError, line_of
from mathqwen.model.config import ModelConfig
from mathqwen.optim_config import OptimConfig
from mathqwen.settings import (
  FREE,
  Conditional,
  Setting,
  check_fields,
  declared,
  did_you_mean,
  from_dict,
  replace_fields,
  setting,
)


def _why_not_other_steps(before: 'Experiment', now: 'Experiment', step: int) -> str:
  """Why a run of `before`, whose newest checkpoint is of `step`, cannot change its train.steps; '' when it can."""
  if now.train.steps < step:
    return (
      f'the newest checkpoint is of step {step}, beyond train.steps {now.train.steps}: set train.steps={step} or more, '
      'or start again in another --workdir'
    )
  if now.optim.schedule != 'constant':
    verb = 'back up' if now.train.steps > before.train.steps else 'down'
    return (
      f'with optim.schedule={now.optim.schedule} the learning rate decays over all train.steps, so at step {step} it '
      f'would jump {verb}: keep train.steps={before.train.steps}, or start a new run from these weights (--init with '
      'another --workdir); only a run that began with optim.schedule=constant can change its length'
    )
  return ''


STEPS_ON_RESUME = Conditional('optim.schedule is constant and no checkpoint is beyond it', _why_not_other_steps)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """The devices along each axis of the mesh; one axis may be -1, for all that the others leave."""

  data: int = setting(1, help='devices that hold copies of the model', changes_weights=False)
  fsdp: int = setting(
    -1, help='devices that weights, optimizer state and the batch are split over', changes_weights=False
  )
  context: int = setting(
    1, help='devices that the length of the rows is split over; weights and optimizer state too', changes_weights=False
  )
  tensor: int = setting(
    1, help='devices that heads, the width of the MLP and the vocabulary are split over', changes_weights=False
  )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The training loop: its length, its memory, and what it writes."""

  steps: int = setting(50_000, help='optimizer steps', at_least=1, on_resume=STEPS_ON_RESUME)
  objective: str = setting(
    'sft',
    help='sft trains on answers; dpo on pairs of a chosen and a rejected answer, against init (training/README.md)',
    choices=('sft', 'dpo'),
  )
  dpo_beta: float = setting(0.1, help='of dpo: how much a preference outweighs the distance from init', above=0)
  dpo_form: str = setting(
    'sum',
    help="of dpo: an answer's log-probability is the sum over its tokens, or their mean, which longer answers do not "
    'gain from',
    choices=('sum', 'mean'),
  )
  micro_batches: int = setting(
    1,
    help='gradient accumulation: the batch is computed in this many parts, to save memory',
    at_least=1,
    changes_weights=False,
  )
  dropout: float = setting(0.1, help='on the embedding and on both residual branches', at_least=0, below=1)
  compute_dtype: str = setting(
    'bfloat16',
    help='of activations and of the working copy of the weights; master weights and moments are float32',
    choices=('float32', 'bfloat16'),
  )
  remat: str = setting(
    'full',
    help='what the backward pass recomputes, from nothing to almost all: more time, less memory (model/stack.py)',
    choices=('none', 'dots', 'gate', 'mlp', 'full', 'nested'),
    changes_weights=False,
  )
  attention: str = setting(
    'auto',
    help='the implementation (model/attention.py); auto chooses by the devices',
    choices=('auto', 'reference', 'blocks', 'splash', 'cudnn'),
    changes_weights=False,
  )
  loss_chunk: int = setting(
    1024,
    help='positions on a device whose logits exist at the same time: smaller needs less memory',
    at_least=1,
    changes_weights=False,
  )
  seed: int = setting(0, help='of random weights and dropout', **SEED)
  max_skipped: int = setting(
    10,
    help='steps in a row whose update may be skipped because the loss or the gradient is not finite, or a spike; one '
    'more ends the run',
    at_least=0,
    changes_weights=False,
  )
  spike_factor: float = setting(
    5.0,
    help='a step whose loss or gradient norm is more than this many times its median over the last 100 steps is a '
    'spike, which is reported with its examples; inf finds none',
    above=1,
    finite=False,
    on_resume=FREE,
  )
  skip_spikes: bool = setting(
    False, help='whether the update of a spike is skipped, as that of a step which is not finite', on_resume=FREE
  )
  hang_minutes: float = setting(
    15.0,
    help='minutes in which nothing moves, neither a step nor an evaluation or a save, after which the run writes where '
    'it stands into WORKDIR/hang and ends with status 75; 0: never',
    at_least=0,
    changes_weights=False,
  )
  compile_minutes: float = setting(
    120.0,
    help='the same while it reads data or weights, or compiles; 0: never',
    at_least=0,
    changes_weights=False,
  )
  log_every: int = setting(
    10, help='steps between lines in metrics.jsonl and TensorBoard', at_least=1, changes_weights=False
  )
  eval_every: int = setting(500, help='steps between evaluation losses', at_least=1, changes_weights=False)
  checkpoint_every: int = setting(500, help='steps between checkpoints', at_least=1, changes_weights=False)
  checkpoint_minutes: float = setting(
    10,
    help='minutes after which a checkpoint is written at the next multiple of train.log_every, too; 0: never by time',
    at_least=0,
    changes_weights=False,
  )
  keep_checkpoints: int = setting(2, help='newest checkpoints that are kept', at_least=1, changes_weights=False)
  keep_every: int = setting(
    0,
    help='checkpoints whose step is a multiple of this are kept, too; 0 keeps none of them',
    at_least=0,
    changes_weights=False,
  )
  keep_best: int = setting(
    0,
    help='so many checkpoints of the lowest evaluation loss are kept, too; above 0, each evaluation writes one',
    at_least=0,
    changes_weights=False,
  )
  adapter: AdapterConfig = NO_ADAPTER

  @property
  def frozen(self) -> AdapterConfig | None:
    """How the weights of init are held that stay as they are: the base of adapters, the reference of dpo, or both.

    None where there are none.
    """
    if self.adapter.rank:
      return self.adapter
    return dataclasses.replace(NO_ADAPTER, base=self.compute_dtype) if self.objective == 'dpo' else None


@dataclasses.dataclass(frozen=True)
class Experiment:
  """Everything that decides a run. UserError, at construction: when values are not allowed or do not fit together."""

  model: ModelConfig
  init: str | None = setting(
    None,
    help='a MODEL to start from, whose own config.json then replaces the settings model.*; None starts from random '
    'weights. Read only at step 0',
    path='model',
    on_resume=FREE,
  )
  data: DataConfig = DataConfig()
  optim: OptimConfig = OptimConfig()
  mesh: MeshConfig = MeshConfig()
  train: TrainConfig = TrainConfig()

  def __post_init__(self):
    check_fields(self)
    check_fields(self.data, 'data.')
    check_fields(self.optim, 'optim.')
    check_fields(self.mesh, 'mesh.')
    check_fields(self.train, 'train.')
    check_fields(self.train.adapter, 'train.adapter.')
    self._check_together()

  def _check_together(self):
    """UserError: when two settings do not fit together, each of them allowed by itself."""
    data = self.data
    optim = self.optim
    train = self.train
    if not data.sources:
      raise UserError('data.sources is empty: name at least one data set or JSON Lines file')
    for name, given in (('weights', data.weights), ('epochs', data.epochs)):
      if given and len(given) != len(data.sources):
        raise UserError(f'data.{name} has {len(given)} entries for {len(data.sources)} data.sources: give one for each')
    targets = train.adapter.targets
    if train.adapter.rank and (not targets or len(set(targets)) < len(targets)):
      raise UserError(f'train.adapter.targets is {targets}: name at least one matrix, and each once')
    if data.share_prompts and train.objective == 'dpo':
      raise UserError('data.share_prompts is not for pairs: set data.share_prompts=false with train.objective=dpo')
    if data.weights and data.epochs:
      raise UserError(
        'data.weights and data.epochs both say how much of each source is trained on: leave one of them, as '
        '--set data.weights='
      )
    if data.batch_size % train.micro_batches:
      nearest = _nearest_divisor(data.batch_size, train.micro_batches)
      raise UserError(
        f'data.batch_size {data.batch_size} is not divisible by train.micro_batches {train.micro_batches}: '
        f'set train.micro_batches={nearest}'
      )
    if optim.offload and optim.name != 'adamw':
      raise UserError(
        f'optim.offload moves the moments of adamw to the host, and those of {optim.name} stay on the devices: set '
        'optim.name=adamw, or optim.offload=false'
      )
    if optim.schedule != 'constant' and optim.warmup_steps >= train.steps:
      raise UserError(
        f'optim.warmup_steps {optim.warmup_steps} leaves no step to decay in train.steps {train.steps}: '
        f'set optim.warmup_steps={train.steps // 10}, or optim.schedule=constant'
      )

  def check_model(self, model: ModelConfig) -> None:
    """UserError when `model` cannot be trained on such rows; called before anything is allocated."""
    if self.data.seq_len > model.longest:
      raise UserError(
        f"data.seq_len {self.data.seq_len} is above the model's {model.limit}: set data.seq_len={model.longest} or less"
      )
    scaling = model.rope_scaling
    if self.data.share_prompts and scaling.follows_length:
      unscaled = scaling.original_max_position_embeddings or model.max_position_embeddings
      if self.data.seq_len > unscaled:
        raise UserError(
          f'data.share_prompts: beyond {unscaled} tokens, rotary scaling {scaling.rope_type} turns a question by the '
          f'length of its answer, so that answers cannot share one: set data.seq_len={unscaled}, or '
          'data.share_prompts=false'
        )


def _nearest_divisor(n: int, near: int) -> int:
  divisors = [d for d in range(1, n + 1) if n % d == 0]
  return min(divisors, key=lambda d: abs(d - near))


SETTINGS: dict[str, Setting] = declared(Experiment)  # {'train.steps': Setting, ...}


def load(config: str) -> Experiment:
  """Runs the Python file of `config`, a path or a name in configs/, and returns what it calls `config`.

  UserError when there is no such file, it fails, or it defines no Experiment.
  """
  path = config_files.find(config)
  try:
    experiment = config_files.run(path).get('config')
  except UserError:
    raise
  except Exception as error:  # whatever a user's own file may raise
    where = f'{path}:{line_of(error, path)}'
    raise UserError(f'{where}: {type(error).__name__}: {error}; correct the config file') from error
  if not isinstance(experiment, Experiment):
    raise UserError(f'{path} does not define `config = Experiment(...)`')
  return experiment


def override(experiment: Experiment, settings: Sequence[str] | Mapping[str, object]) -> Experiment:
  """`experiment` with settings changed.

  settings: texts 'a.b=value', as --set takes them, or {'a.b': value of the setting's type}.
  UserError for a setting that does not exist, has a value that is not allowed, or would not be read.
  """
  changes = dict(settings) if isinstance(settings, Mapping) else _parse_all(settings)
  for name in changes:
    _check_exists(name)
  experiment = replace_fields(experiment, changes)
  _refuse_unread(experiment, changes)
  return experiment


def _parse_all(texts: Sequence[str]) -> dict[str, object]:
  changes = {}
  for text in texts:
    name, separator, value = text.partition('=')
    if not separator:
      raise UserError(f'--set {text}: write it as name=value, for example --set train.steps=100')
    _check_exists(name)
    changes[name] = SETTINGS[name].parse(name, value)
  return changes


def _check_exists(name: str) -> None:
  if name not in SETTINGS:
    raise UserError(f'--set {name}: there is no such setting{did_you_mean(name, SETTINGS)}')


def resolve(
  config: str | Experiment,
  settings: Sequence[str] | Mapping[str, object] = (),
  init: str | None = None,
  data_dir: str | None = None,
) -> Experiment:
  """The experiment that a command describes: `config`, the values of its flags, and `settings` on top.

  config: a name, a path or an experiment. settings: as `override` takes them. init: as --init; 'random' starts from
  random weights. data_dir: as --data-dir.
  """
  experiment = config if isinstance(config, Experiment) else load(config)
  changes = dict(settings) if isinstance(settings, Mapping) else _parse_all(settings)
  from_flags: dict[str, object] = {}
  if init is not None:
    from_flags['init'] = None if init in ('random', 'None', 'none') else init
  if data_dir is not None:
    from_flags['data.data_dir'] = data_dir
  return override(experiment, from_flags | changes)


def _refuse_unread(experiment: Experiment, changed: Iterable[str]) -> None:
  """UserError for a changed setting that nothing reads, given the other settings: silence would hide a mistake."""
  train = experiment.train
  unread = {}  # {name: (why nothing reads it, the nearest setting that is read)}
  if experiment.optim.schedule == 'constant':
    unread['optim.final_ratio'] = 'optim.schedule=constant has no decay', 'optim.schedule'
  if experiment.data.eval_examples == 0:
    for name in ('train.eval_every', 'train.keep_best'):
      unread[name] = 'data.eval_examples=0 holds no examples out', 'data.eval_examples'
  if math.isinf(train.spike_factor):
    unread['train.skip_spikes'] = 'train.spike_factor=inf finds no spike', 'train.spike_factor'
  if train.objective != 'dpo':
    for name in ('train.dpo_beta', 'train.dpo_form'):
      unread[name] = f'train.objective={train.objective} has no pairs', 'train.objective'
  if not train.adapter.rank:
    for name in declared(AdapterConfig, 'train.adapter.').keys() - {'train.adapter.rank'}:
      unread[name] = 'train.adapter.rank=0 trains all weights', 'train.adapter.rank'
  if experiment.init is not None:
    for name in declared(ModelConfig, 'model.'):
      unread[name] = f'the model comes from {experiment.init}', 'init'
  for name in changed:
    if name in unread:
      why, nearest = unread[name]
      raise UserError(f'--set {name}: nothing reads it, because {why}; the nearest setting that is read is {nearest!r}')
  if 'train.eval_every' in changed and train.eval_every > train.steps:
    raise UserError(f'--set train.eval_every: {train.eval_every} is never reached in train.steps {train.steps}')


def to_json(experiment: Experiment) -> str:
  """The resolved experiment as JSON; a run keeps it in experiment.json."""
  return json.dumps(dataclasses.asdict(experiment), indent=2) + '\n'


def from_json(text: str, where: str) -> Experiment:
  """The experiment that `to_json` wrote. UserError when it is anything else. where: names the file in the message."""
  try:
    return from_dict(Experiment, json.loads(text))
  except (ValueError, TypeError, KeyError) as error:
    raise UserError(f'{where} is not a resolved config of mathqwen ({error}): copy it again') from None
