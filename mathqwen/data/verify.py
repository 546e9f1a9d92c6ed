"""`mathqwen data verify`: whether the data at hand gives the batches that a run says it was trained on.

WORKDIR/ledger.jsonl has a line for each step of the run, which training writes:

  {"step": 1, "batch": "5f1c0e6a91d2b7c3"}     `packing.digest` of the step's global batch

It does not depend on hosts, mesh or micro-batches: two runs on the same data have the same ledger.
"""

from collections.abc import Sequence

from mathqwen.data import pipeline
from mathqwen.data.training_data import TrainingData
from mathqwen.errors import UserError


def verify(
  data: TrainingData, ledger: Sequence[dict], where: str, recorded: dict | None = None, newest: int = 0
) -> dict:
  """Makes the batches of the run again, and compares them with its ledger.

  ledger: its lines, from step 1 on. where: the ledger, for messages. recorded: the fingerprint of the data that the run
  had, None where it left none. newest: the step of its newest checkpoint, which the ledger must reach.
  Returns `steps`, how many were compared. UserError: when the data is not that of the run, a step is missing from the
  ledger, or its batch differs.
  """
  if recorded is not None:
    _compare_data(data, recorded)
  _check_complete(ledger, where, newest)
  batches = data.train()
  differing = []  # (step, first example of its batch)
  try:
    for line in ledger:
      position = batches.get_state()
      next(batches)
      if line['batch'] != batches.digest:
        differing.append((line['step'], batches.examples(position)[0][0]))
  finally:
    batches.close()
  if not differing:
    return {'steps': len(ledger)}

  step, first = differing[0]
  others = f', and so do {len(differing) - 1:,} later ones of {len(ledger):,}' if len(differing) > 1 else ''
  remedy = 'give the data and the tokenizer that the run had'
  if recorded is not None:
    remedy = 'the data is that of the run, so these lines were changed: copy the ledger again'
  raise UserError(
    f'{where}: the batch of step {step} differs from what this data gives, whose first example is {first}{others}: '
    f'{remedy}'
  )


def _compare_data(data: TrainingData, recorded: dict) -> None:
  """UserError: when the run had another fingerprint of its data; names the source where one differs."""
  for name in pipeline.differing(data.fingerprint, recorded):
    value, was = data.fingerprint[name], recorded.get(name)
    remedy = 'give the data and the tokenizer that the run had'
    if name in ('examples', 'crc32') and isinstance(was, list) and len(was) == len(value):
      which = next(i for i in range(len(value)) if was[i] != value[i])
      source = data.cfg.sources[which]
      if name == 'examples':
        raise UserError(f'{source} gives {value[which]:,} training examples, and the run had {was[which]:,}: {remedy}')
      raise UserError(f'{source} does not hold what the run was trained on (its tokens or masks differ): {remedy}')
    raise UserError(f'the data of the run had {name} {was}, and this has {value}: {remedy}')


def _check_complete(ledger: Sequence[dict], where: str, newest: int) -> None:
  """UserError: unless the ledger has each step once, in order, up to the newest checkpoint."""
  for number, line in enumerate(ledger, start=1):
    if line['step'] != number:
      raise UserError(f'{where}: step {number} is missing (line {number} is of step {line["step"]}): copy it again')
  if len(ledger) < newest or not ledger:
    last = f'ends at step {len(ledger)}' if ledger else 'has no step'
    raise UserError(f'{where} {last}, and the newest checkpoint is of step {newest}: copy it again')
