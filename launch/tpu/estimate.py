"""What a job will need, before anything is created: `mathqwen plan` for its slice, then days, chip-hours and price."""

import dataclasses
import hashlib
import json
import pathlib
import subprocess
import sys

from launch.tpu.cloud import say
from launch.tpu.job import ROOT, TpuJob
from mathqwen.errors import UserError


@dataclasses.dataclass(frozen=True)
class Estimate:
  """By the roofline of `mathqwen plan`."""

  days: float
  settings: dict  # of training, chosen by `plan`
  gib: float  # of HBM that a chip needs
  capacity_gib: float
  chip_hours: float
  cost: float | None
  host_gib: tuple[float, float] | None = None  # of a host's memory while it saves, and its memory

  def text(self, job: TpuJob) -> str:
    """One line for people."""
    chosen = ', '.join(f'{name}={value}' for name, value in self.settings.items())
    price = f', {self.cost:,.2f} at {job.price_per_chip_hour:g} a chip-hour' if self.cost is not None else ''
    host = '; saving takes {:.1f} of {:.1f} GiB of a host'.format(*self.host_gib) if self.host_gib else ''
    return (
      f'{job.config} on {job.slice} ({job.where.chips} chips): {self.gib:.1f} of {self.capacity_gib:.1f} GiB a chip; '
      f'at least {self.days:.2g} days, {self.chip_hours:,.1f} chip-hours{price}, by a roofline (launch/README.md), '
      f'plus the time to start and to save{host}; with {chosen}'
    )


def estimate(job: TpuJob, folder: pathlib.Path) -> Estimate:
  """Compiles the job's training step, which takes minutes; the result is kept in `folder` until job or source change.

  UserError: when the step does not fit the slice, or `mathqwen plan` fails.
  """
  line = [sys.executable, '-m', 'mathqwen', 'plan', job.config, '--topology', job.slice, '--json']
  line += [f'--set={setting}' for setting in job.set]
  commit = subprocess.run(['git', '-C', str(ROOT), 'rev-parse', 'HEAD'], capture_output=True, text=True).stdout
  key = hashlib.sha256(json.dumps([line[2:], commit]).encode()).hexdigest()
  kept = folder / 'plan.json'
  found = json.loads(kept.read_text()) if kept.exists() else {}
  if found.get('key') != key:
    say(f'compiling the training step for {job.slice}, which takes minutes')
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
      last_line = (done.stderr.strip().splitlines() or ['mathqwen plan failed'])[-1]
      raise UserError(f'{last_line.removeprefix("mathqwen: ")} (--no-plan skips this)')
    (row,) = json.loads(done.stdout.splitlines()[-1])['topologies']
    found = {'key': key, 'row': row}
    folder.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(found))
  row = found['row']
  if not row['fits']:
    raise UserError(
      f'{job.config} does not fit {job.slice}: take more chips, or see `mathqwen plan` (--no-plan skips this)'
    )
  needed, memory = row.get('host_bytes_while_saving'), row.get('host_memory_bytes')
  if not row.get('host_fits', True):
    raise UserError(
      f'{job.slice}: a host has {memory / 2**30:.1f} GiB ({row["host_machine"]}), and saving {job.config} takes '
      f'{needed / 2**30:.1f}: take a slice with more hosts (--no-plan skips this)'
    )
  chip_hours = row['days'] * 24 * job.where.chips
  return Estimate(
    days=row['days'],
    settings=row['settings'],
    gib=row['peak_bytes_per_chip'] / 2**30,
    capacity_gib=row['hbm_capacity_bytes'] / 2**30,
    chip_hours=chip_hours,
    host_gib=(needed / 2**30, memory / 2**30) if needed else None,
    cost=chip_hours * job.price_per_chip_hour if job.price_per_chip_hour else None,
  )
