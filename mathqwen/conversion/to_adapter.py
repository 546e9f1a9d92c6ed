"""`convert to-hf --adapter`: the adapters of a run alone, as PEFT's files."""

import dataclasses
import functools

import jax
import numpy as np

from mathqwen import files, hf
from mathqwen.conversion import card, check, check_template
from mathqwen.errors import UserError, report
from mathqwen.files import hub
from mathqwen.observe.metrics import peak_rss_bytes
from mathqwen.storage.base import MergedWeights
from mathqwen.storage.source import Source, open_source

# What the logits of base and adapter may differ from the merged ones, in standard deviations of the logits: the base's
# files may have another dtype than the one that was trained on, and sums are rounded in another order.
ALLOWED = 0.05


def export_adapter(
  source: str,
  target: str,
  layout: str | None = None,
  dtype: str | None = None,
  scores: list[str] | None = None,
  compare: bool = True,
) -> dict:
  """Writes `target`, a new directory with the adapters of the run `source` as PEFT's files, tokenizer and stop ids.

  layout: of the base, where it is a run of ours or an adapter itself, as `convert_to_hf` then writes it.
  dtype: of the adapters; None: float32.
  scores: directories that `evaluate --out` wrote, for the model card.
  compare: refuse a result that has other logits with its base than the merged weights. Where the run's base was
    quantised, both are computed with the base as its files have it; how far these logits are from those of the run is
    reported.

  Returns {out, layout, dtype, base, check, of_quantized, peak_rss_bytes}; check, of_quantized: see
  `check.compare_sources`, or None. The second is of the run with its quantised base, and the adapter on its files.
  UserError: when the target exists, the run has no adapters, or the result or its prompts differ. Then nothing is left
  behind.
  """
  hf.check_target(target)
  model = open_source(source)
  weights = model.weights
  if not isinstance(weights, MergedWeights):
    raise UserError(f'{source} has no adapters, which a run with train.adapter.rank has: leave out --adapter')
  cfg, adapter = model.config, model.experiment.train.adapter
  of_files = weights.layout
  chat = model.trained_chat()
  plan = hf.plan_export(weights, cfg, model.tokenizer, dtype, layout or of_files, chat, model.system_prompt)
  text = card.model_card(model, plan, dtype or 'float32', scores or [], is_adapter=True)
  base = _base_keys(weights.base_name)
  if of_files is None:
    report(
      f'the base, {weights.base_name}, is a run of ours or an adapter itself: write it with mathqwen convert to-hf, '
      f'and name that in {target}/{hf.ADAPTER_CONFIG}'
    )
  read = functools.cache(weights.trained.read)  # once for all layers
  lengths = functools.cache(weights.lengths)

  def write(folder):
    hf.write_adapter(folder, read, lengths, cfg, adapter, plan.layout, base, hf.DTYPES[dtype or 'float32'])
    (folder / 'README.md').write_text(text)
    hf.write_prompt(plan, folder)
    check_template.check_written(model, folder)

  size = sum(np.prod(hf.weight_at(weights.shapes, path).shape) * 4 for path in weights.trained.paths())
  differences = of_quantized = None
  with hf.new_directory(target, int(size)) as folder:
    hf.together((lambda: write(folder)) if jax.process_index() == 0 else None)
    if compare and of_files is not None and jax.process_count() == 1:
      differences = _check(model, str(folder))
      if weights.is_quantized:
        # Opened again: their files were closed when they were read.
        of_quantized = check.compare_sources(
          open_source(source), open_source(str(folder), quiet=True), *_dtypes(weights)
        )
  if jax.process_index() == 0:
    print(f'{target}: an adapter of rank {adapter.rank} for {weights.base_name}; {_verdict(differences)}')
    if of_quantized is not None:
      print(
        f'the run computed with its base in {adapter.base}, whose logits are within '
        f'{of_quantized["max_logit_difference"]:.2g} of these: convert to-hf without --adapter writes that model'
      )
  return {
    'out': target,
    'layout': plan.layout,
    'dtype': dtype or 'float32',
    'base': weights.base_name,
    'check': differences,
    'of_quantized': of_quantized,
    'peak_rss_bytes': peak_rss_bytes(),
  }


def _base_keys(name: str) -> dict[str, str | None]:
  """The keys of adapter_config.json that name a base."""
  if not name.startswith(files.HUB):
    return {'base_model_name_or_path': files.absolute_text(name), 'revision': None}
  repository, _, revision = hub.name_of(name).partition('@')
  return {'base_model_name_or_path': repository, 'revision': revision or None}


def _check(model: Source, folder: str) -> dict:
  """UserError: when the logits of the written adapter on its base are not about those of the merged weights."""
  report('comparing the adapter on its base with the merged weights (--no-check leaves it out)')
  unquantized = dataclasses.replace(model, weights=model.weights.unquantized())
  found = check.compare_sources(unquantized, open_source(folder, quiet=True), *_dtypes(model.weights))
  if not found['max_logit_difference'] <= ALLOWED * found['logit_std']:  # not `>`: NaN must not pass
    raise UserError(
      f'the written adapter on {model.weights.base_name} differs from the merged weights by '
      f'{found["max_logit_difference"]:.3g} in a logit: nothing is kept; is the disk or the memory at fault? Try again'
    )
  return found


def _dtypes(weights: MergedWeights) -> tuple[str | None, str | None]:
  """Of both sides of a comparison: their own, float32; half of it for a quantised base, whose model may be large."""
  return (weights.base_dtype,) * 2 if weights.is_quantized else (None, None)


def _verdict(differences: dict | None) -> str:
  if differences is None:
    return 'not compared with the merged weights'
  return (
    f'its logits are within {differences["max_logit_difference"]:.2g} of the merged weights (standard deviation '
    f'{differences["logit_std"]:.2g})'
  )
