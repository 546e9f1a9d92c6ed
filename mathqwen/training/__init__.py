"""Fine-tuning: one step, the loop around it, and how a run is put together.

For other folders to use; nothing is imported here, so that each module costs only what it needs:

  prepare.TrainingRun   an `Experiment` with model, tokenizer, data and mesh checked: `prepare`, then `train` or `plan`
  prepare.dry_run       what `train --dry-run` prints
  step                  `train_step`, `eval_step`, `gradients`, `loss_fn`; `compile_step`, `init_state`, abstract shapes
  loss                  masked cross-entropy as sums, log-probabilities of tokens; dpo, the loss of pairs
  optim                 `optimizer` and `schedule`
  reproduce.find_original   the run that is to be made again
  stops.watching        takes SIGTERM and Ctrl-C, before JAX is imported

`prepare` uses `loop.fit`, which trains to the last step, from the newest checkpoint.
"""

__all__ = ['loss', 'optim', 'prepare', 'reproduce', 'step', 'stops']
