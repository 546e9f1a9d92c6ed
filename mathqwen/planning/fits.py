"""`mathqwen plan --fits`: which sizes of model can be trained on which slices, and with which method."""

import dataclasses
from collections.abc import Callable
from typing import Any

from mathqwen import config, files
from mathqwen.adapter_config import NO_ADAPTER
from mathqwen.errors import UserError, report
from mathqwen.hardware import chips, sharding
from mathqwen.model import quantized
from mathqwen.model.config import PRESETS
from mathqwen.planning import compiler, search
from mathqwen.planning.estimate import estimate
from mathqwen.settings import to_flat

SIZES = ('Qwen2.5-0.5B', 'Qwen2.5-1.5B', 'Qwen2.5-3B', 'Qwen2.5-7B', 'Qwen2.5-14B', 'Qwen2.5-32B')
RANK = 16  # of adapters, where the user sets none
# {name: what `mathqwen train` takes for it with --set}
METHODS: dict[str, dict[str, Any]] = {
  'full adamw': {'optim.name': 'adamw', 'train.adapter.rank': 0},
  'full adamw_bf16': {'optim.name': 'adamw_bf16', 'train.adapter.rank': 0},
  'full adamw_8bit': {'optim.name': 'adamw_8bit', 'train.adapter.rank': 0},
  'LoRA': {'train.adapter.base': 'bfloat16', 'train.adapter.rank': RANK},
  'QLoRA int8': {'train.adapter.base': 'int8', 'train.adapter.rank': RANK},
  'QLoRA nf4': {'train.adapter.base': 'nf4', 'train.adapter.rank': RANK},
}
# What is tried for each: the fastest settings first, then less memory.
TRIED = [{'train.remat': remat, 'train.loss_chunk': chunk} for remat in ('full', 'nested') for chunk in (1024, 256)]
FOUND = ('data.batch_size', 'train.micro_batches')  # nobody can set what this finds
MARGIN = 0.06  # by which an estimate may err: `python tests/planning/measure_fits.py` compares
MOST_ROWS = 512  # that a device is asked to take

LEGEND = """\
A cell: GiB of a chip with the least batch, one row for each device; how many rows fit into a step for sure; + when more
  can be accumulated (train.micro_batches). Or no, and the GiB that a chip lacks with the least batch."""
ESTIMATED = f"""\
Estimated, within {MARGIN:.0%} of what the TPU compiler says; ? where only that decides. --exact compiles each cell
  with its least batch instead, which takes minutes for each."""
COMPILED = "GiB are the TPU compiler's, which compiled each cell with its least batch; rows are estimated."


def plan(
  models: dict[str, config.Experiment] | None, topologies: list[str], settings: list[str], exact: bool = False
) -> dict[str, Any]:
  """Prints a table, models and methods by slices. Returns the JSON of `mathqwen plan --fits`: `fits`, its cells.

  models: by the name that the table shows, with the settings that all methods keep; None: those of SIZES.
  settings: as --set; a method that needs another value of one of them is left out.
  exact: compile each cell.
  UserError: when a slice is unknown, a setting is wrong, no method is left, or the TPU compiler is missing or fails.
  The table then has the cells before.
  """
  slices = [chips.slice_of(name, '--fits') for name in topologies]
  models = models or {name: config.Experiment(PRESETS[name]) for name in SIZES}
  fixed = dict(setting.partition('=')[::2] for setting in settings)
  for name in FOUND:
    if name in fixed:
      raise UserError(f'--set {name}: --fits finds it: leave it out, or plan with --topology')
  if fixed.get('train.remat') == 'none':
    raise UserError('--set train.remat=none: --fits has no good estimate of it: leave it out, or plan with --topology')
  methods = _methods(fixed)
  asked = _experiments(models, methods, fixed, settings)
  if exact:
    compiler.check_installed()
  cells = []
  try:
    for (name, method), experiment in asked.items():
      for where in slices:
        cell = {'model': name, 'method': method, 'topology': where.name, 'chips': where.chips}
        cell |= _cell(experiment, where, set(fixed), exact)
        values = to_flat(experiment)
        chosen = {name: values[name] for name in methods[method]}
        cells.append(cell | {'settings': chosen | cell.get('settings', {})})
  finally:
    if cells:
      print(_table(cells, slices))
      lengths = sorted({experiment.data.seq_len for experiment in asked.values()})
      print(f'A row has {" or ".join(map(str, lengths))} tokens (data.seq_len).')
      print(LEGEND)
      print(COMPILED if exact else ESTIMATED)
  return {'fits': cells, 'exact': exact, 'margin': MARGIN}


def _methods(fixed: dict[str, str]) -> dict[str, dict[str, Any]]:
  """METHODS, and one for a base that the user sets and none of them has."""
  base = fixed.get('train.adapter.base')
  if base is None or any(base == changes.get('train.adapter.base') for changes in METHODS.values()):
    return METHODS
  name = 'QLoRA' if base in quantized.KINDS else 'LoRA'
  return METHODS | {f'{name} {base}': {'train.adapter.base': base, 'train.adapter.rank': RANK}}


def _experiments(
  models: dict[str, config.Experiment], methods: dict[str, dict], fixed: dict[str, str], settings: list[str]
) -> dict[tuple[str, str], config.Experiment]:
  """{(model, method): its experiment}; a line names what the settings do not allow. UserError: when nothing is left."""
  asked, refused = {}, {}
  for name, one in models.items():
    for method, changes in methods.items():
      if not _agrees(changes, fixed):
        continue
      try:
        experiment = config.override(_changed(one, changes), settings)
        experiment.check_model(experiment.model)
      except UserError as error:
        refused[name, method] = str(error)
      else:
        asked[name, method] = experiment
  if not asked:
    given = ', '.join(settings)
    raise UserError(next(iter(refused.values()), f'--set {given}: no method of --fits has these settings: change them'))
  for (name, method), why in refused.items():
    report(f'{name}, {method}: left out: {why}')
  return asked


def _agrees(method: dict[str, Any], fixed: dict[str, str]) -> bool:
  """Whether the method can be had with these settings of the user."""
  rank = fixed.get('train.adapter.rank')
  asks_for_adapter = rank != '0' and any(name.startswith('train.adapter.') for name in fixed)
  if (rank == '0') if method['train.adapter.rank'] else asks_for_adapter:
    return False
  return all(text == str(method.get(name, text)) for name, text in fixed.items() if name != 'train.adapter.rank')


def _changed(experiment: config.Experiment, method: dict[str, Any]) -> config.Experiment:
  """`experiment` with the settings of the method."""
  train = experiment.train
  if method['train.adapter.rank']:
    method = method | {'train.adapter.rank': train.adapter.rank or method['train.adapter.rank']}
    # Adapters need weights that they adapt. These are never read.
    experiment = dataclasses.replace(experiment, init=experiment.init or f'{files.HUB}any/model')
  else:
    experiment = dataclasses.replace(experiment, train=dataclasses.replace(train, adapter=NO_ADAPTER))
  return config.override(experiment, method)


# --- one cell ---


def _cell(experiment: config.Experiment, where: chips.Slice, fixed: set[str], exact: bool) -> dict[str, Any]:
  """What fits of a model and a method on a slice; {'fits': False, 'error'} when no mesh splits it."""
  try:
    least = {'data.batch_size': where.devices, 'train.micro_batches': 1}
    mesh = search.mesh_for(config.override(experiment, least), where, fixed)
  except UserError as error:
    return {'fits': False, 'error': str(error)}
  devices, capacity = where.chip.devices, where.chip.hbm_bytes // where.chip.devices
  shards = sharding.batch_shards(mesh)

  def settings(tried: dict[str, Any], rows: int = 1, micro_batches: int = 1) -> dict[str, Any]:
    batch = {'data.batch_size': rows * micro_batches * shards, 'train.micro_batches': micro_batches}
    chosen = {f'mesh.{axis}': size for axis, size in mesh.items()} | tried | batch
    return {name: value for name, value in chosen.items() if name not in fixed}

  def total(*asked) -> int:
    return estimate(config.override(experiment, settings(*asked)), mesh).total

  tried = next((tried for tried in TRIED if total(tried) <= capacity), TRIED[-1])
  parts = estimate(config.override(experiment, settings(tried)), mesh)
  cell = {
    'fits': parts.total <= capacity,
    'decided': abs(parts.total - capacity) > MARGIN * parts.total,
    'hbm_bytes_per_chip': parts.total * devices,
    'hbm_capacity_bytes': where.chip.hbm_bytes,
    'missing_bytes_per_chip': max(0, parts.total - capacity) * devices,
    'rows': shards * max(parts.total <= capacity, _most(lambda rows: total(tried, rows) * (1 + MARGIN) <= capacity)),
    'accumulates': total(tried, 1, 2) * (1 + MARGIN) <= capacity,
    'settings': settings(tried),
  } | {name: size * devices for name, size in dataclasses.asdict(parts).items()}
  return cell | _compiled(experiment, where, cell) if exact else cell


def _compiled(experiment: config.Experiment, where: chips.Slice, cell: dict[str, Any]) -> dict[str, Any]:
  """What the TPU compiler changes in a cell: of its settings, or of those with less memory when they do not fit."""
  of = lambda settings, tried: settings | {name: value for name, value in tried.items() if name in settings}
  first = next(index for index, tried in enumerate(TRIED) if of(cell['settings'], tried) == cell['settings'])
  for tried in TRIED[first:]:
    settings = of(cell['settings'], tried)
    report(f'{where.name}: compiling with {", ".join(f"{name}={value}" for name, value in settings.items())}')
    found = compiler.compile_for(config.override(experiment, settings), where)
    if 'error' not in found:
      sizes = {name: found[name] * where.chip.devices for name in ('weights_bytes', 'moments_bytes')}
      peak = found['peak_bytes_per_chip'] * where.chip.devices
      return {'fits': True, 'decided': True, 'hbm_bytes_per_chip': peak, 'settings': settings} | sizes
    report(f'{where.name}: {found["error"]}')
  return {'fits': False, 'decided': True, 'error': found['error'], 'settings': settings, 'rows': 0}


def _most(fits: Callable[[int], bool]) -> int:
  """The most rows that fit, up to MOST_ROWS, when all fewer fit too."""
  low, high = 0, MOST_ROWS + 1  # low fits, high does not
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if fits(middle) else (low, middle)
  return low


# --- the table ---


def _table(cells: list[dict[str, Any]], slices: list[chips.Slice]) -> str:
  """Markdown, a line for each model and method."""
  names = [f'{where.name} ({where.chips} x {where.chip.hbm_bytes / 2**30:.0f} GiB)' for where in slices]
  lines = [['model', 'method', *names], ['---'] * (2 + len(slices))]
  for start in range(0, len(cells), len(slices)):
    row = cells[start : start + len(slices)]
    lines.append([row[0]['model'], row[0]['method'], *map(_text, row)])
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def _text(cell: dict[str, Any]) -> str:
  if 'hbm_bytes_per_chip' not in cell:
    return f'no: {cell["error"]}'
  doubt = '' if cell['decided'] else '?'
  if not cell['fits']:
    return f'no{doubt} (-{cell["missing_bytes_per_chip"] / 2**30:.1f})'
  more = '+' if cell['accumulates'] else ''
  return f'{cell["hbm_bytes_per_chip"] / 2**30:.1f}{doubt}, {cell["rows"]}{more} rows'
