"""LoRA adapters of PEFT, merged into the weights of their base as these are read.

  adapter_config.json           rank, alpha, the base's name
  adapter_model.safetensors     base_model.model.MODULE.lora_A.weight [rank, in] and lora_B.weight [out, rank]; whole
                                weights, under their names in the base, for `modules_to_save` and `bias`

  merged    W + scale * B @ A, in float32; scale is alpha / rank, with rsLoRA alpha / sqrt(rank)
  DoRA      each row of that scaled to the length in lora_magnitude_vector

A row of the merged weight needs this row of W and of B alone, so a merged weight is read in ranges of rows like any
other tensor. Whatever else a config asks for is refused by its name.
"""

import dataclasses
import math
import re
from typing import Any

import numpy as np

from mathqwen import files
from mathqwen.errors import UserError
from mathqwen.hf.tensor_directory import ADAPTER, Problem, StoredTensor, TensorDirectory, merge_layers
from mathqwen.hf.tensor_files import CODES
from mathqwen.model.config import ModelConfig

ADAPTER_CONFIG = 'adapter_config.json'
EMBEDDING = 'model.embed_tokens.weight'
HEAD = 'lm_head.weight'
# Keys that say how the adapter was trained, or what `merge` finds out from the tensors.
_WITHOUT_EFFECT = (
  'auto_mapping',
  'base_model_name_or_path',
  'bias',
  'eva_config',
  'exclude_modules',
  'fan_in_fan_out',  # of layers that store [in, out]; PEFT, too, ignores it for nn.Linear, and no family has others
  'inference_mode',
  'layers_pattern',
  'layers_to_transform',
  'lora_dropout',
  'megatron_core',
  'modules_to_save',
  'peft_version',
  'qalora_group_size',
  'revision',
  'runtime_config',
  'target_modules',
  'task_type',
)
_HANDLED = ('peft_type', 'r', 'lora_alpha', 'use_rslora', 'use_dora', 'rank_pattern', 'alpha_pattern')
# How A and B began. The other methods also take something out of the base's weights, which the adapter's file lacks.
_BEGINNINGS = (None, True, False, 'gaussian', 'eva', 'orthogonal')
_LORA = re.compile(
  r'(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)'
  r'(\.default)?(?P<leaf>\.weight|\.bias)?'
)
# What a name in rank_pattern or alpha_pattern may be made of: no expression that could take forever to match.
_PATTERN = re.compile(r'\^?([\w.]|\\\.|\.\*|\\d\+?|\[0-9\]\+?|\([\w.|]+\))+\$?')


class Adapter:
  """An adapter's directory, opened; nothing of its tensors is read.

  UserError: when it is not a LoRA adapter, its config asks for what is not merged here, or a file is damaged.
  """

  def __init__(self, directory: files.AnyPath):
    self.directory = directory
    self._values = files.read_json_object(directory / ADAPTER_CONFIG)
    self._check()
    self._opened = TensorDirectory(directory, ADAPTER)
    if self._opened.problems:
      self.close()
      raise UserError(f'{directory} is no whole adapter: {"; ".join(merge_layers(self._opened.problems))}')

  def _check(self):
    """UserError: names each key that would change the merged weights in a way that is not computed here."""
    values = self._values
    where = self.directory / ADAPTER_CONFIG
    if 'fine_tune_type' in values:
      raise UserError(f'{where} is of mlx-lm, whose adapters are not merged here: merge it with mlx_lm.fuse first')
    if values.get('peft_type') != 'LORA':
      raise UserError(f'{where}: peft_type {str(values.get("peft_type"))[:40]!r} is not merged here, only LORA')
    for name in ('r', 'lora_alpha'):
      _check_number(values.get(name), name, where)
    for name in ('rank_pattern', 'alpha_pattern'):
      _check_patterns(values.get(name), name, where)
    refused = [
      f'{name} {str(value)[:40]}'
      for name, value in values.items()
      if value and name not in (*_WITHOUT_EFFECT, *_HANDLED, 'init_lora_weights')
    ]
    if values.get('init_lora_weights') not in _BEGINNINGS:
      refused.append(f'init_lora_weights {str(values["init_lora_weights"])[:40]!r}, which changes the base too')
    if refused:
      raise UserError(f'{where} asks for what is not merged here: {"; ".join(refused)}; merge it with PEFT first')

  @property
  def base(self) -> str:
    """What the config names as the base: a directory, a URL or a name on the hub. UserError: when it names none."""
    name = self._values.get('base_model_name_or_path')
    if not isinstance(name, str) or not name:
      raise UserError(f'{self.directory / ADAPTER_CONFIG} names no base_model_name_or_path: {self.remedy}')
    return name

  @property
  def base_on_hub(self) -> str:
    """`base`, with the revision that the config asks for, for the hub."""
    revision = self._values.get('revision')
    return f'{self.base}@{revision}' if isinstance(revision, str) and revision and '@' not in self.base else self.base

  @property
  def remedy(self) -> str:
    """What to do where the base cannot be found."""
    return f"copy the adapter's {ADAPTER_CONFIG} and weights into the directory of its base, and name that"

  def merge(
    self, tensors: dict[str, StoredTensor], cfg: ModelConfig, base: str
  ) -> tuple[dict[str, 'StoredTensor | MergedTensor'], ModelConfig]:
    """(the tensors of the base with the adapter in them, the config that they fit).

    The config differs from the base's where the adapter replaces the embedding by one with other rows, or changes only
    one of an embedding and a head that were the same.
    UserError: names every tensor that fits nothing in the base.
    """
    problems: list[Problem] = []
    parts, merged = self._parts(problems)
    touched = {*merged, *(f'{module}.weight' for module in parts)}
    tensors = dict(tensors)
    if cfg.tie_word_embeddings and touched & {EMBEDDING, HEAD}:
      cfg = dataclasses.replace(cfg, tie_word_embeddings=False)
      tensors[HEAD] = tensors[EMBEDDING]
    if EMBEDDING in merged:
      cfg = dataclasses.replace(cfg, vocab_size=merged[EMBEDDING].shape[0])

    problems += [(name, 'is not in the base') for name in merged if name not in tensors]
    for module, of_module in parts.items():
      made = self._merged(module, of_module, tensors, problems)
      if made is not None:
        merged[f'{module}.weight'] = made
    problems += self._left_out(parts, tensors)
    if problems:
      raise UserError(f'{self.directory} cannot be merged into {base}: {"; ".join(merge_layers(problems))}')
    return tensors | merged, cfg

  def _parts(self, problems: list[Problem]) -> tuple[dict[str, dict[str, StoredTensor]], dict[str, StoredTensor]]:
    """({module: {'lora_A': ...}}, {name in the base: a whole weight that takes its place})."""
    parts: dict[str, dict[str, StoredTensor]] = {}
    whole: dict[str, StoredTensor] = {}
    for name, tensor in self._opened.tensors.items():
      plain = name.removeprefix('base_model.model.')
      if tensor.code not in CODES:
        problems.append((plain, f'is {tensor.code}: {", ".join(CODES)} are read'))
      elif found := _LORA.fullmatch(plain):
        if found['leaf'] == '.bias':
          problems.append((plain, 'is a bias of the adapter, which is not merged here'))
        parts.setdefault(found['module'], {})[found['part']] = tensor
      else:
        whole[re.sub(r'\.base_layer|\.modules_to_save(\.default)?', '', plain)] = tensor
    return parts, whole

  def _merged(
    self, module: str, parts: dict[str, StoredTensor], tensors: dict[str, StoredTensor], problems: list[Problem]
  ) -> 'MergedTensor | None':
    """The merged weight of one module; None after a problem."""
    is_embedding = 'lora_embedding_A' in parts or 'lora_embedding_B' in parts
    names = ('lora_embedding_A', 'lora_embedding_B') if is_embedding else ('lora_A', 'lora_B')
    wanted = {*names, 'lora_magnitude_vector'} if self._values.get('use_dora') and not is_embedding else set(names)
    if wrong := sorted(wanted ^ set(parts)):
      verb = 'has no' if wrong[0] in wanted else 'has'
      problems.append((module, f'{verb} {wrong[0]}'))
      return None
    base = tensors.get(f'{module}.weight')
    if base is None or len(base.shape) != 2:
      problems.append((module, 'has no weight in the base'))
      return None
    if base.code not in CODES:
      problems.append((f'{module}.weight', f'is {base.code} in the base: {", ".join(CODES)} are read'))
      return None

    rank = self._of_module('rank_pattern', module, self._values['r'])
    out_features, in_features = base.shape[::-1] if is_embedding else base.shape
    expected = dict(zip(names, ((rank, in_features), (out_features, rank)), strict=True))
    expected['lora_magnitude_vector'] = (out_features,)
    misfits = [name for name in sorted(wanted) if parts[name].shape != expected[name]]
    if misfits:
      name = misfits[0]
      problems.append((f'{module}.{name}', f'has shape {parts[name].shape}, base and rank say {expected[name]}'))
      return None
    alpha = self._of_module('alpha_pattern', module, self._values['lora_alpha'])
    scale = alpha / (math.sqrt(rank) if self._values.get('use_rslora') else rank)
    a, b = (parts[name] for name in names)
    return MergedTensor(base, a, b, scale, is_embedding, parts.get('lora_magnitude_vector'))

  def _of_module(self, patterns: str, module: str, default):
    """The value of a module's name in rank_pattern or alpha_pattern, matched as PEFT does."""
    for pattern, value in (self._values.get(patterns) or {}).items():
      if re.match(rf'(.*\.)?({pattern})$', module):
        return value
    return default

  def _left_out(self, parts: dict, tensors: dict[str, StoredTensor]) -> list[Problem]:
    """Modules of the base that `target_modules` lists, and for which the adapter has nothing."""
    values = self._values
    targets = values.get('target_modules')
    if not isinstance(targets, list) or values.get('layers_to_transform') is not None or values.get('exclude_modules'):
      return []
    names = {str(target) for target in targets}
    modules = [name.removesuffix('.weight') for name in tensors if name.endswith('.weight')]
    listed = [module for module in modules if module in names or any(module.endswith(f'.{name}') for name in names)]
    missing = [module for module in listed if module not in parts]
    return [(module, 'is in target_modules and the adapter has nothing for it') for module in missing]

  def describe(self, base: str) -> str:
    """One line for the user."""
    return f'merged the adapter {self.directory}, of rank {self._values["r"]}, into {base}'

  def close(self) -> None:
    """Closes the files."""
    self._opened.close()


@dataclasses.dataclass(frozen=True)
class MergedTensor:
  """A weight of the base with an adapter in it, float32; read like a `StoredTensor`."""

  base: StoredTensor
  a: StoredTensor  # [rank, in]
  b: StoredTensor  # [out, rank]
  scale: float
  is_embedding: bool  # its weight is [in, out], one row for each token
  magnitude: StoredTensor | None  # [out], of DoRA

  code = 'F32'

  @property
  def shape(self) -> tuple[int, ...]:
    """That of the base's weight."""
    return self.base.shape

  def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
    """Rows `start` to `stop`, merged, into the contiguous float32 `out` when one is given. ValueError: as readers."""
    rank = self.a.shape[0]
    a = np.float32(self.a.read(0, rank))
    if self.is_embedding:
      left, right = a[:, start:stop].T, np.float32(self.b.read(0, self.b.shape[0])).T
    else:
      left, right = np.float32(self.b.read(start, stop)), a
    merged = np.matmul(left, right)
    merged *= np.float32(self.scale)
    merged += np.float32(self.base.read(start, stop))
    if self.magnitude is not None:
      lengths = np.linalg.norm(merged, axis=1)
      merged *= (np.float32(self.magnitude.read(start, stop)) / lengths)[:, None]
    if out is None:
      return merged
    out.reshape(merged.shape)[...] = merged
    return out


def read_adapter(directory: files.AnyPath) -> Adapter | None:
  """The adapter in a directory; None where there is no adapter_config.json. UserError: as `Adapter`."""
  return Adapter(directory) if files.is_there(directory / ADAPTER_CONFIG) else None


def _check_number(value: Any, name: str, where: files.AnyPath):
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  if not is_number or not 0 < value < 1e6 or (name == 'r' and value % 1):
    raise UserError(f'{where}: {name} is {str(value)[:40]!r}: it must be a positive number; fetch it again')


def _check_patterns(patterns: Any, name: str, where: files.AnyPath):
  if patterns is None:
    return
  if not isinstance(patterns, dict):
    raise UserError(f'{where}: {name} is {type(patterns).__name__}: it must be a table; fetch it again')
  for pattern, value in patterns.items():
    if len(pattern) > 200 or sum(map(pattern.count, '*+')) > 3 or not _PATTERN.fullmatch(pattern):
      raise UserError(f'{where}: {name} has {pattern[:60]!r}, which is more than a name: merge it with PEFT first')
    _check_number(value, 'r' if name == 'rank_pattern' else 'lora_alpha', where)
