"""The model card of an export: what it is, how it was trained, what it scored. Every figure is read from a file."""

from mathqwen import config
from mathqwen.evals import provenance
from mathqwen.evals.report import table
from mathqwen.hf import hub
from mathqwen.storage.source import Source
from mathqwen.text.bpe import IM_START

SETTINGS = ('data', 'optim', 'train')


def model_card(source: Source, layout: str, dtype: str | None, scores: list[str]) -> str:
  """Markdown with the front matter of the hub. scores: what `mathqwen evaluate --out` wrote."""
  made, run = provenance.provenance(), source.experiment
  trained = source.step if run is not None else None
  lines = ['---', 'library_name: transformers', 'pipeline_tag: text-generation', 'tags: [math, mathqwen]']
  hub_name = None
  if run is not None and run.init and run.init.startswith(hub.PREFIX):
    hub_name = hub.name_of(run.init)
    lines.append(f'base_model: {hub_name}')  # the hub takes no other names
  lines += ['---', '', f'# {source.name.rstrip("/").split("/checkpoints/")[0].split("/")[-1]}', '']
  commit = f', commit {made["commit"]}' if made['commit'] else ''
  lines.append(f'Written by mathqwen {made["version"]}{commit}; layout {layout}, {dtype or "dtypes as stored"}.')
  if layout == 'qwen1':
    lines.append('Its tensors and config are those of `QWenLMHeadModel`, whose code is not part of transformers.')
  if source.tokenizer is not None and IM_START in source.tokenizer.special:
    lines += ['', '## Prompt', '', 'ChatML, as in the chat template; answers are decoded greedily.']
  if source.system_prompt:
    lines += ['', f'System turn: `{source.system_prompt}`']
  if trained:
    start = hub_name or _shown(run.init or 'random weights')
    lines += [
      '',
      '## Training',
      '',
      f'{trained:,} steps from {start} with the recipe of the Qwen Technical Report, section 5 (cross-entropy on the '
      'assistant turns, AdamW, warmup, then decay), with these settings:',
      '',
      '| setting | value |',
      '|---|---|',
    ]
    flat = config.to_flat(run)
    lines += [f'| `{name}` | {_shown(value)} |' for name, value in flat.items() if name.split('.')[0] in SETTINGS]
  if scores:
    lines += ['', '## Scores', '', table.table(scores).strip()]
  return '\n'.join(lines) + '\n'


def _shown(value) -> str:
  """A setting without the folders of the machine that it was used on."""
  if isinstance(value, tuple):
    return ', '.join(map(_shown, value))
  return value.rstrip('/').split('/')[-1] if isinstance(value, str) else str(value)
