"""`mathqwen data verify`: whether the data at hand gives the batches that a run says it was trained on.

WORKDIR/ledger.jsonl has a line for each step of the run, which training writes:

  {"step": 1, "batch": "5f1c0e6a91d2b7c3"}     `packing.digest` of the step's global batch

It does not depend on hosts, mesh or micro-batches: two runs on the same data have the same ledger.
"""

from collections.abc import Iterable

from mathqwen.data.training_data import TrainingData
from mathqwen.errors import UserError


def verify(data: TrainingData, ledger: Iterable[dict], where: str) -> dict:
  """Makes the batches of the run again, and compares them with its ledger.

  ledger: its lines, from step 1 on. where: the ledger, for messages.
  Returns `steps`, how many were compared. UserError: when a step is missing from the ledger, or its batch differs.
  """
  batches = data.train()
  steps = 0
  try:
    for line in ledger:
      steps += 1
      if line['step'] != steps:
        raise UserError(f'{where}: step {steps} is missing (line {steps} is of step {line["step"]}): copy it again')
      position = batches.get_state()
      next(batches)
      if line['batch'] != batches.digest:
        first = batches.examples(position)[0][0]
        raise UserError(
          f'{where}: the batch of step {steps} differs from what this data gives, whose first example is {first}: give '
          'the data and the tokenizer that the run had'
        )
  finally:
    batches.close()
  return {'steps': steps}
