"""How far estimates of `plan --fits` are from the TPU compiler: where MARGIN of `planning/fits.py` is from.

python tests/planning/measure_fits.py [CELL ...]     minutes for each; ends with status 1 if one is off by more
"""

import sys

from mathqwen import config
from mathqwen.hardware import chips
from mathqwen.model.config import PRESETS
from mathqwen.planning import compiler, fits
from mathqwen.planning.estimate import estimate

# model, slice, settings; moments take what they are estimated to, so any optimizer shows the error of the rest.
CELLS = {
  'tied': ('Qwen2.5-0.5B', 'v5e-1', {'optim.name': 'adamw'}),
  'rows': ('Qwen2.5-0.5B', 'v5e-1', {'optim.name': 'adamw_8bit', 'data.batch_size': 8}),
  'bar': ('Qwen2.5-7B', 'v5e-8', {'optim.name': 'adamw_bf16'}),
  'nested': ('Qwen2.5-7B', 'v5e-8', {'optim.name': 'adamw_bf16', 'train.remat': 'nested'}),
  'sums': ('Qwen2.5-1.5B', 'v6e-1', {'optim.name': 'adamw_8bit', 'data.batch_size': 2, 'train.micro_batches': 2}),
  'LoRA': ('Qwen2.5-7B', 'v5e-4', {'train.adapter.rank': 16}),
  'LoRA, rows': ('Qwen2.5-1.5B', 'v5e-1', {'train.adapter.rank': 16, 'data.batch_size': 4}),
  'QLoRA': ('Qwen2.5-7B', 'v5e-1', {'train.adapter.rank': 16, 'train.adapter.base': 'nf4'}),
  'large': ('Qwen2.5-14B', 'v5p-8', {'optim.name': 'adamw_8bit', 'data.batch_size': 8}),
}


def main() -> int:
  """Prints a line for each cell. Returns the exit status."""
  worst = 0.0
  for name in sys.argv[1:] or CELLS:
    model, topology, settings = CELLS[name]
    where = chips.slice_of(topology)
    mesh = {'data': 1, 'fsdp': where.devices, 'context': 1, 'tensor': 1}
    every = {'data.batch_size': where.devices} | settings | {f'mesh.{axis}': size for axis, size in mesh.items()}
    experiment = config.override(config.Experiment(PRESETS[model], init='hf://any/model'), every)
    estimated = estimate(experiment, mesh).total
    compiled = compiler.compile_for(experiment, where)['peak_bytes_per_chip']
    apart = estimated / compiled - 1
    worst = max(worst, abs(apart))
    shown = f'{estimated / 2**30:.2f} GiB, compiled {compiled / 2**30:.2f}: {apart:+.1%}'
    print(f'{name}: {model} on {topology}, {settings}: estimated {shown}', flush=True)
  return int(worst > fits.MARGIN)


if __name__ == '__main__':
  sys.exit(main())
