"""What is written about a step whose numbers are bad: not finite, or a spike."""

from mathqwen import files, strict_json


def describe(metrics: dict, medians: tuple[float, float] | None) -> str:
  """'step 7: the loss or the gradient is not finite: no update', or by how much it is a spike.

  metrics: as `Meter.newest` has them. medians: of loss and gradient norm, for a spike.
  """
  step = metrics['step']
  update = 'no update' if metrics['skipped'] else 'the update was made'
  if not metrics['spike']:
    return f'step {step}: the loss or the gradient is not finite: {update}'
  loss, norm = medians
  return (
    f'step {step}: loss {metrics["loss"]:.4g} (median {loss:.4g}), gradient norm {metrics["grad_norm"]:.4g} (median '
    f'{norm:.4g}): a spike, {update}'
  )


def write(workdir: str, metrics: dict, medians: tuple[float, float] | None, examples: list[list[str]]) -> str:
  """Writes WORKDIR/skipped/STEP.json or WORKDIR/spikes/STEP.json. Returns a line for the user.

  examples: of the step's batch, row by row: their files and lines.
  """
  step = metrics['step']
  file = files.path(workdir) / ('spikes' if metrics['spike'] else 'skipped') / f'{step}.json'
  file.parent.mkdir(exist_ok=True)
  content = {'step': step, 'loss': metrics['loss'], 'grad_norm': metrics['grad_norm']}
  if metrics['spike']:
    loss, norm = medians
    content |= {'median_loss': loss, 'median_grad_norm': norm, 'skipped': bool(metrics['skipped'])}
  file.write_text(strict_json.dumps(content | {'examples': examples}) + '\n')
  return f'{describe(metrics, medians)}; its examples are in {file}'
