"""Rotary embeddings in a config.json, as transformers 4 and 5 write them <-> rope_theta and `RopeScaling`.

version 4   "rope_theta": 10000.0, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, ...}   earlier "type"
version 5   "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, ...}
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mathqwen.hf.config_keys import shown
from mathqwen.model.config import NO_ROPE_SCALING, ROPE_FIELDS, ModelConfig, RopeScaling

KEYS = ('rope_theta', 'rope_scaling', 'rope_parameters', 'original_max_position_embeddings')
_NAMES = ('rope_type', 'type', 'rope_theta')
# Keys inside that change the mathematics, and the values with which they do not.
_CHANGES = {
  'partial_rotary_factor': (None, 1),
  'mrope_section': (None,),
  'llama_4_scaling_beta': (None, 0),
  'alpha': (None, 1),
}
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(RopeScaling)}


def read(
  values: Mapping[str, Any], default_theta: float, positions: Any
) -> tuple[float | None, RopeScaling, list[str], list[str]]:
  """(rope_theta, its scaling, problems, keys that nobody knows) of the values of a config.json.

  default_theta: without the key. positions: max_position_embeddings.
  UserError: when a number of the scaling is out of bounds. TypeError: when it has another type.
  """
  problems: list[str] = []
  parameters = _object(values, 'rope_parameters', problems)
  scaling = _object(values, 'rope_scaling', problems)
  theta = _theta(values, parameters, scaling, default_theta, problems)

  kind, found = _chosen(parameters, scaling, problems)
  unknown = []
  for key, value in found.items():
    if key in _CHANGES and value not in _CHANGES[key]:
      problems.append(f'{shown(key, value)} of the rotary embeddings')
    elif key not in _CHANGES and key not in _NAMES and key not in ROPE_FIELDS.get(kind, ()):
      unknown.append(f'rope_scaling.{key}')
  if kind not in ROPE_FIELDS:
    problems.append(f'rope scaling {kind!r}')
  if problems or kind == 'default':
    return theta, NO_ROPE_SCALING, problems, unknown
  # Phi-3 writes it outside, and transformers then takes that one.
  outside = values.get('original_max_position_embeddings')
  found = found if outside is None else found | {'original_max_position_embeddings': outside}
  return theta, _scaling(kind, found, positions, problems), problems, unknown


def _object(values: Mapping[str, Any], key: str, problems: list[str]) -> dict:
  """A JSON object inside `values`; {} when it is missing, null, or another thing, which is then a problem."""
  found = values.get(key)
  if found is None:
    return {}
  if not isinstance(found, dict):
    problems.append(f'{shown(key, found)}, which is no object')
    return {}
  if any(isinstance(value, dict) for value in found.values()):
    problems.append(f'{key} for each kind of layer')
    return {}
  return found


def _theta(values: Mapping, parameters: dict, scaling: dict, default: float, problems: list[str]) -> float | None:
  """The rotary base. A null is a problem, as in transformers; a key that is left out means the default."""
  found = [place['rope_theta'] for place in (values, scaling, parameters) if place.get('rope_theta') is not None]
  if not found and 'rope_theta' in values:
    problems.append('neither rope_theta nor rope_parameters.rope_theta')
  elif any(theta != found[0] for theta in found):
    problems.append(f'{shown("rope_theta", found[0])} but rope_parameters.{shown("rope_theta", found[-1])}')
  return found[0] if found else default


def _chosen(parameters: dict, scaling: dict, problems: list[str]) -> tuple[str, dict]:
  """(kind, its keys). Where both objects are there, transformers takes rope_scaling, so they must not disagree."""
  kinds = [_kind(place) for place in (scaling, parameters) if place]
  if not kinds:
    return 'default', {}
  if len(kinds) == 2 and kinds[1] != 'default' and not _agree(scaling, parameters):
    problems.append(f'rope_scaling {kinds[0]!r} but rope_parameters {kinds[1]!r}: leave one of them')
  return kinds[0], scaling or parameters


def _kind(place: dict) -> str:
  kind = place.get('type') if place.get('rope_type') is None else place['rope_type']
  if kind is None and set(place) - {*_NAMES, *_CHANGES}:
    return 'unknown'  # numbers without a type still scale
  return 'default' if kind is None else str(kind)


def _agree(scaling: dict, parameters: dict) -> bool:
  """Whether both say the same, apart from the name of the type and the rotary base."""
  a, b = ({key: x for key, x in place.items() if key not in _NAMES} for place in (scaling, parameters))
  return _kind(scaling) == _kind(parameters) and a == b


def _scaling(kind: str, found: dict, positions: Any, problems: list[str]) -> RopeScaling:
  """The scaling of these keys, with the defaults of transformers; NO_ROPE_SCALING where it changes nothing."""
  # null, and for YaRN's numbers 0, stand for a key that is left out.
  fields = {key: found[key] for key in ROPE_FIELDS[kind] if found.get(key) is not None}
  for key in ('mscale', 'mscale_all_dim', 'beta_fast', 'beta_slow'):
    if fields.get(key) == 0 and not isinstance(fields[key], bool):
      del fields[key]
  if 'original_max_position_embeddings' in ROPE_FIELDS[kind]:
    fields.setdefault('original_max_position_embeddings', positions)
  if kind in ('yarn', 'longrope') and 'factor' not in fields:
    fields['factor'] = positions / fields['original_max_position_embeddings']

  missing = [key for key in ('factor', 'low_freq_factor', 'short_factor') if key in ROPE_FIELDS[kind]]
  missing = [key for key in missing if key not in fields]
  if missing:
    problems.append(f'rope scaling {kind!r} without {", ".join(missing)}')
    return NO_ROPE_SCALING
  scaling = RopeScaling(kind, **{key: tuple(x) if isinstance(x, list) else x for key, x in fields.items()})
  changes_nothing = scaling.factor == 1 and scaling.attention_factor in (None, 1)
  return NO_ROPE_SCALING if changes_nothing and kind in ('linear', 'llama3', 'yarn') else scaling


def make(cfg: ModelConfig) -> dict[str, Any]:
  """The keys of a config.json that both versions of transformers, and vLLM, read."""
  scaling = cfg.rope_scaling
  fields = {'rope_type': scaling.rope_type}
  for name in ROPE_FIELDS[scaling.rope_type]:
    value = getattr(scaling, name)
    if name == 'factor' or value != _DEFAULTS[name]:
      fields[name] = list(value) if isinstance(value, tuple) else value
  made = {'rope_theta': cfg.rope_theta, 'rope_parameters': fields | {'rope_theta': cfg.rope_theta}}
  return made if scaling == NO_ROPE_SCALING else made | {'rope_scaling': fields}
