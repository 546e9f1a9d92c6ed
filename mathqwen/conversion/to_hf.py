"""`convert to-hf`: a Hugging Face directory from a MODEL of either kind, one weight at a time."""

import jax

from mathqwen import hf
from mathqwen.conversion import card, check, check_template
from mathqwen.observe.metrics import peak_rss_bytes
from mathqwen.storage.source import open_source


def convert_to_hf(
  source: str,
  target: str,
  layout: str | None = None,
  dtype: str | None = None,
  scores: list[str] | None = None,
  compare: bool = True,
) -> dict:
  """Writes `target`, a new Hugging Face directory, from the MODEL `source`.

  layout: a name in `hf.LAYOUTS`; None: the one that transformers loads.
  dtype: a name in `hf.DTYPES`; None: bfloat16 for a run, whose masters are float32, and otherwise that of the
    files; with an adapter, that of its base's.
  scores: directories that `evaluate --out` wrote, for the model card.
  compare: refuse a result whose logits differ from those of the source in any bit.

  Returns {out, layout, dtype, check, peak_rss_bytes}; check: see `check.compare_sources`, or None when not compared.
  UserError: when the target exists, the layout cannot hold the model, a file is damaged, the disk is full, a weight is
  not finite in this dtype, or the result or its prompts differ. Then nothing is left behind.
  """
  # 1. Plan: what will be written. What can be refused without reading weights is refused here.
  hf.check_target(target)
  model = open_source(source)
  dtype = dtype or model.export_dtype
  chat = model.trained_chat()
  plan = hf.plan_export(model.weights, model.config, model.tokenizer, dtype, layout, chat, model.system_prompt)
  text = card.model_card(model, plan, dtype, scores or [])

  several_hosts = jax.process_count() > 1
  differences = None
  with hf.new_directory(target, plan.size) as folder:
    # 2. Write: into a temporary directory next to the target.
    hf.write_export(plan, model.weights, folder, text)
    hf.together((lambda: check_template.check_written(model, folder)) if jax.process_index() == 0 else None)

    # 3. Check: read what was written. After an error the temporary directory is removed.
    if compare and not several_hosts:  # a model that several hosts export may not fit on one
      differences = check.check_written(model, str(folder), dtype)
  # The directory now has its name.

  hf.print_notes(target, plan)
  if jax.process_index() == 0:
    verdict = check.verdict_on(differences)
    if several_hosts and compare:
      verdict = 'written by several hosts: compare it with mathqwen convert check'
    print(f'{target}: a Hugging Face directory, layout {plan.layout}, {dtype or "dtypes as stored"}; {verdict}')
  return {
    'out': target,
    'layout': plan.layout,
    'dtype': dtype,
    'check': differences,
    'peak_rss_bytes': peak_rss_bytes(),
  }
