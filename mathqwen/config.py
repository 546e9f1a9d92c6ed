"""Experiments as typed, frozen dataclasses; `load` reads one from configs/, `override` applies `--set a.b=value`.

Every setting is read by the code it configures. A name that is unknown, or that nothing reads given the other
settings, is an error that names the nearest one.
"""

import dataclasses
import difflib
import json
import math
import pathlib
import runpy
import traceback
import types
import typing
from collections.abc import Sequence

from mathqwen.errors import UserError
from mathqwen.model.config import ModelConfig

SCHEDULES = ('cosine', 'linear', 'constant')
REMAT = ('none', 'dots', 'gate', 'mlp', 'full', 'nested')
ATTENTION = ('auto', 'reference', 'blocks', 'splash', 'cudnn')
DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class DataConfig:
  sources: tuple[str, ...] = ('gsm8k',)  # names of data sets (their train split) or paths of JSON Lines files
  weights: tuple[float, ...] = ()  # share of examples drawn from each source; () takes every example once an epoch
  data_dir: str | None = None  # a local copy of the named data sets; None uses what `mathqwen data prepare` made
  seq_len: int = 1024  # tokens in a packed row
  batch_size: int = 128  # packed rows in a step, over all hosts and micro-batches
  system_prompt: str = ''  # system turn before each question; '' renders none
  eval_examples: int = 256  # held out of training, for the evaluation loss; 0 holds out none
  seed: int = 0  # of the data order and of the held-out choice


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """Defaults are the recipe of the Qwen Technical Report, sections 3.1.2 and 5.1."""

  learning_rate: float = 2e-5  # at the peak
  warmup_steps: int = 1_430  # linear from 0
  schedule: str = 'cosine'  # after the peak: cosine, linear or constant
  final_ratio: float = 0.1  # last learning rate over the peak (cosine and linear)
  beta1: float = 0.9
  beta2: float = 0.95
  eps: float = 1e-8
  weight_decay: float = 0.1  # decoupled; not on norms and biases
  clip_norm: float = 1.0  # global gradient norm


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis; -1 takes what the other axes leave."""

  data: int = 1  # copies of the model
  fsdp: int = -1  # weights and optimizer state split over these, batch too
  context: int = 1  # the length of rows split over these, weights and optimizer state too
  tensor: int = 1  # heads, MLP width and vocabulary split over these


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  steps: int = 50_000
  micro_batches: int = 1  # gradient accumulation: the batch goes through in this many parts
  dropout: float = 0.1  # on the embedding and on both residual branches
  compute_dtype: str = 'bfloat16'  # of activations and of the weights' working copy; masters and moments are float32
  remat: str = 'full'  # what the backward pass computes again: none, dots, gate, mlp, full, nested (model/qwen.py)
  attention: str = 'auto'  # by the devices; or one of model/attention.py: reference, blocks, splash, cudnn
  loss_chunk: int = 1024  # positions with loss, of a device, whose logits exist at one time
  seed: int = 0  # of random weights and dropout
  log_every: int = 10  # steps between lines in metrics.jsonl and TensorBoard
  eval_every: int = 500  # steps between evaluation losses
  checkpoint_every: int = 500  # steps between checkpoints
  keep_checkpoints: int = 2  # newest kept


@dataclasses.dataclass(frozen=True)
class Experiment:
  model: ModelConfig
  init: str | None = None  # a MODEL to start from; its own config.json then replaces `model`. None: random weights
  data: DataConfig = DataConfig()
  optim: OptimConfig = OptimConfig()
  mesh: MeshConfig = MeshConfig()
  train: TrainConfig = TrainConfig()

  def __post_init__(self):
    for name, value in to_flat(self).items():
      if not _fits(value, _type_of(name)):
        raise UserError(f'{name} is {value!r}: {_wanted(_type_of(name))} is expected')
    d, o, t = self.data, self.optim, self.train
    _one_of('optim.schedule', o.schedule, SCHEDULES)
    _one_of('train.remat', t.remat, REMAT)
    _one_of('train.attention', t.attention, ATTENTION)
    _one_of('train.compute_dtype', t.compute_dtype, DTYPES)
    for name, value, least in [
      ('data.seq_len', d.seq_len, 2),
      ('data.batch_size', d.batch_size, 1),
      ('data.eval_examples', d.eval_examples, 0),
      ('optim.warmup_steps', o.warmup_steps, 0),
      ('train.steps', t.steps, 1),
      ('train.micro_batches', t.micro_batches, 1),
      ('train.loss_chunk', t.loss_chunk, 1),
      ('train.log_every', t.log_every, 1),
      ('train.eval_every', t.eval_every, 1),
      ('train.checkpoint_every', t.checkpoint_every, 1),
      ('train.keep_checkpoints', t.keep_checkpoints, 1),
    ]:
      if value < least:
        raise UserError(f'{name} is {value}: it must be at least {least}')
    for name, value, ok, bounds in [
      ('optim.learning_rate', o.learning_rate, 0 < o.learning_rate < math.inf, 'above 0 and finite'),
      ('optim.final_ratio', o.final_ratio, 0 <= o.final_ratio <= 1, 'from 0 to 1'),
      ('optim.beta1', o.beta1, 0 <= o.beta1 < 1, 'at least 0 and below 1'),
      ('optim.beta2', o.beta2, 0 <= o.beta2 < 1, 'at least 0 and below 1'),
      ('optim.eps', o.eps, 0 < o.eps < math.inf, 'above 0 and finite'),
      ('optim.weight_decay', o.weight_decay, 0 <= o.weight_decay < math.inf, 'at least 0 and finite'),
      ('optim.clip_norm', o.clip_norm, o.clip_norm > 0, 'above 0 (inf does not clip)'),
      ('train.dropout', t.dropout, 0 <= t.dropout < 1, 'at least 0 and below 1'),
      ('data.seed', d.seed, 0 <= d.seed < 2**32, 'from 0 to 2**32 - 1'),
      ('train.seed', t.seed, 0 <= t.seed < 2**32, 'from 0 to 2**32 - 1'),
    ]:
      if not ok:
        raise UserError(f'{name} is {value}: it must be {bounds}')
    if not d.sources:
      raise UserError('data.sources is empty: name at least one data set or JSON Lines file')
    if d.weights and len(d.weights) != len(d.sources):
      raise UserError(f'data.weights has {len(d.weights)} entries for {len(d.sources)} data.sources: give one for each')
    if not all(0 < w < math.inf for w in d.weights):
      raise UserError(
        f'data.weights {d.weights} must all be above 0 and finite; leave a source out of data.sources instead'
      )
    if d.batch_size % t.micro_batches:
      raise UserError(
        f'data.batch_size {d.batch_size} is not divisible by train.micro_batches {t.micro_batches}: '
        f'set train.micro_batches={_nearest_divisor(d.batch_size, t.micro_batches)}'
      )
    if o.schedule != 'constant' and o.warmup_steps >= t.steps:
      raise UserError(
        f'optim.warmup_steps {o.warmup_steps} leaves no step to decay in train.steps {t.steps}: '
        f'set optim.warmup_steps={t.steps // 10}, or optim.schedule=constant'
      )

  def check_model(self, model: ModelConfig):
    """Refuses rows longer than the model was made for, before anything is allocated."""
    if self.data.seq_len > model.max_position_embeddings:
      raise UserError(
        f"data.seq_len {self.data.seq_len} is above the model's max_position_embeddings "
        f'{model.max_position_embeddings}: set data.seq_len={model.max_position_embeddings} or less'
      )


def _one_of(name, value, allowed):
  if value not in allowed:
    raise UserError(f'{name} is {value!r}: it must be one of {", ".join(allowed)}{_did_you_mean(str(value), allowed)}')


def _nearest_divisor(n, near):
  return min((d for d in range(1, n + 1) if n % d == 0), key=lambda d: abs(d - near))


def _did_you_mean(name, names):
  initials = lambda n: ''.join(word[0] for word in n.split('.')[-1].split('_') if word)
  close = [n for n in names if initials(n) == name.split('.')[-1]]  # lr is learning_rate
  close = close or difflib.get_close_matches(name, names, n=1, cutoff=0.0)
  return f'; did you mean {close[0]!r}?' if close else ''


# Directories that hold configs: beside the package in a checkout, inside it when installed.
CONFIG_DIRS = (
  pathlib.Path(__file__).parent.parent / 'configs',
  pathlib.Path(__file__).parent / 'configs',
)


def names() -> list[str]:
  """Configs that can be given by name."""
  return sorted({p.stem for d in CONFIG_DIRS for p in d.glob('*.py') if p.stem != '__init__'})


def load(config: str) -> Experiment:
  """The `config` of the Python file `config`, a path or a name in configs/."""
  path = pathlib.Path(config)
  if path.suffix != '.py':
    found = [d / f'{config}.py' for d in CONFIG_DIRS if (d / f'{config}.py').exists()]
    if not found:
      raise UserError(
        f'no config {config!r}: known are {", ".join(names())}{_did_you_mean(config, names())} '
        '(a config of your own is given as a path that ends in .py)'
      )
    path = found[0]
  elif not path.exists():
    raise UserError(f'no config file {config}: give the path of a Python file that defines `config`')
  try:
    experiment = runpy.run_path(str(path)).get('config')
  except (SyntaxError, NameError, TypeError, AttributeError, ImportError, ValueError, LookupError, OSError) as error:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else 1
    raise UserError(f'{path}:{line}: {type(error).__name__}: {error}; mend the config file') from error
  if not isinstance(experiment, Experiment):
    raise UserError(f'{path} does not define `config = Experiment(...)`')
  return experiment


def override(experiment: Experiment, settings: list[str]) -> Experiment:
  """`experiment` with each 'a.b=value' applied, typed by the field."""
  leaves = to_flat(experiment)
  changes: dict[str, object] = {}
  for setting in settings:
    name, separator, text = setting.partition('=')
    if not separator:
      raise UserError(f'--set {setting}: write it as name=value, for example --set train.steps=100')
    if name not in leaves:
      raise UserError(f'--set {name}: there is no such setting{_did_you_mean(name, list(leaves))}')
    changes[name] = _parse(name, _type_of(name), text)
  experiment = _replace(experiment, changes)
  _refuse_unread(experiment, changes)
  return experiment


def resolve(
  config: str, settings: Sequence[str] = (), init: str | None = None, data_dir: str | None = None
) -> Experiment:
  """The experiment that a command line describes: `config` by name or path, its flags, and --set on top.

  settings: 'a.b=value' each. init: as --init; 'random' starts from random weights. data_dir: as --data-dir.
  """
  from_flags = []
  if init is not None:
    from_flags.append(f'init={"None" if init == "random" else init}')
  if data_dir is not None:
    from_flags.append(f'data.data_dir={data_dir}')
  return override(load(config), [*from_flags, *settings])


def _refuse_unread(experiment, changed):
  """Settings that nothing would read beside the others: silence would hide a mistake."""
  o, d, t = experiment.optim, experiment.data, experiment.train
  unread = {
    'optim.final_ratio': (o.schedule == 'constant', 'optim.schedule=constant has no decay', 'optim.schedule'),
    'train.eval_every': (d.eval_examples == 0, 'data.eval_examples=0 holds no examples out', 'data.eval_examples'),
  }
  if experiment.init is not None:
    for field in dataclasses.fields(ModelConfig):
      unread[f'model.{field.name}'] = (True, f'the model comes from {experiment.init}', 'init')
  for name in changed:
    dead, why, nearest = unread.get(name, (False, '', ''))
    if dead:
      raise UserError(f'--set {name}: nothing reads it, because {why}; the nearest setting that is read is {nearest!r}')
  if t.eval_every > t.steps and 'train.eval_every' in changed:
    raise UserError(f'--set train.eval_every: {t.eval_every} is never reached in train.steps {t.steps}')


def _type_of(name):
  cls = Experiment
  for part in name.split('.'):
    cls = typing.get_type_hints(cls)[part]
  return cls


def _fits(value, kind) -> bool:
  if isinstance(kind, types.UnionType):
    return any(_fits(value, k) for k in typing.get_args(kind))
  if typing.get_origin(kind) is tuple:
    return isinstance(value, tuple) and all(_fits(v, typing.get_args(kind)[0]) for v in value)
  if kind is float:
    return isinstance(value, int | float) and not isinstance(value, bool)
  return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _wanted(kind) -> str:
  if isinstance(kind, types.UnionType):
    return ' or '.join(map(_wanted, typing.get_args(kind)))
  if typing.get_origin(kind) is tuple:
    return f'a tuple, each {_wanted(typing.get_args(kind)[0])},'
  return {int: 'a whole number', float: 'a number', str: 'text', bool: 'true or false', types.NoneType: 'None'}[kind]


def _parse(name, kind, text):
  """`text` as `kind`: int, float, bool, str, `... | None`, or a tuple written with commas."""
  if isinstance(kind, types.UnionType):
    if text in ('None', 'none', ''):
      return None
    kind = next(k for k in typing.get_args(kind) if k is not type(None))
  if typing.get_origin(kind) is tuple:
    return tuple(_parse(name, typing.get_args(kind)[0], part.strip()) for part in text.split(',') if part.strip())
  if kind is str:
    return text
  if kind is bool:
    if text.lower() not in ('true', 'false'):
      raise UserError(f'--set {name}={text}: write true or false')
    return text.lower() == 'true'
  try:
    return kind(text.replace('_', '') if kind is int else text)
  except ValueError:
    raise UserError(f'--set {name}={text}: {_wanted(kind)} is expected') from None


def _replace(node, changes):
  here = {name: value for name, value in changes.items() if '.' not in name}
  below: dict[str, dict] = {}
  for name, value in changes.items():
    head, _, rest = name.partition('.')
    if rest:
      below.setdefault(head, {})[rest] = value
  return dataclasses.replace(node, **here, **{k: _replace(getattr(node, k), v) for k, v in below.items()})


def to_flat(node, prefix='') -> dict[str, object]:
  """{'train.steps': 50000, ...}: every setting under its dotted name."""
  flat = {}
  for field in dataclasses.fields(node):
    value = getattr(node, field.name)
    if dataclasses.is_dataclass(value):
      flat |= to_flat(value, f'{prefix}{field.name}.')
    else:
      flat[prefix + field.name] = value
  return flat


def to_json(experiment: Experiment) -> str:
  return json.dumps(dataclasses.asdict(experiment), indent=2) + '\n'


def from_json(text: str, where: str) -> Experiment:
  """The experiment that `to_json` wrote. `where` names the file in errors."""
  try:
    return _from_dict(Experiment, json.loads(text), '')
  except (ValueError, TypeError, KeyError) as error:
    raise UserError(f'{where} is not a resolved config of mathqwen ({error}): copy it again') from None


def _from_dict(cls, values, prefix):
  if not isinstance(values, dict):
    raise ValueError(f'{prefix or "the whole"} is {type(values).__name__}')
  hints = typing.get_type_hints(cls)
  if unknown := set(values) - set(hints):
    raise ValueError(f'unknown setting {prefix}{sorted(unknown)[0]}')
  out = {}
  for name, value in values.items():
    if dataclasses.is_dataclass(hints[name]):
      out[name] = _from_dict(hints[name], value, f'{prefix}{name}.')
    else:
      out[name] = tuple(value) if isinstance(value, list) else value
  return cls(**out)
