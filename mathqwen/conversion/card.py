"""The model card of an export: what it is, how it was trained, how it scored. Every figure is read from a file."""

from mathqwen import files, hf
from mathqwen.chat.chat_format import TEMPLATE_FILE
from mathqwen.evals.report import table
from mathqwen.files import hub
from mathqwen.settings import to_flat
from mathqwen.storage import provenance
from mathqwen.storage.source import Source
from mathqwen.text.bpe import IM_START

SETTINGS = ('data', 'optim', 'train')  # sections of the config that the card lists


def model_card(
  source: Source, plan: hf.ExportPlan, dtype: str | None, scores: list[str], library: str = 'transformers'
) -> str:
  """Markdown with the front matter that the Hugging Face hub reads.

  plan: of the export. dtype: of the files; None: each weight's own. scores: directories that `evaluate --out` wrote.
  library: that loads the files. UserError: when there are no scores in one of the directories.
  """
  hub_name = _hub_name(source)
  lines = ['---', f'library_name: {library}', 'pipeline_tag: text-generation', 'tags: [math, mathqwen]']
  if hub_name is not None:
    lines.append(f'base_model: {hub_name}')
  lines += ['---', '', f'# {_title(source.name)}', '']

  made = provenance.code()
  commit = f', commit {made["commit"]}' if made['commit'] else ''
  lines.append(f'Written by mathqwen {made["version"]}{commit}; layout {plan.layout}, {dtype or "dtypes as stored"}.')
  if plan.layout == 'qwen1':
    lines.append('Its tensors and config are those of `QWenLMHeadModel`, whose code is not part of transformers.')
  lines += _prompt(source, plan)
  if source.is_run:
    lines += _training(source, hub_name)
  if scores:
    lines += ['', '## Scores', '', table.table(scores).strip()]
  return '\n'.join(lines) + '\n'


def _prompt(source: Source, plan: hf.ExportPlan) -> list[str]:
  """Lines of the section about the prompt: which template and system turn, and where answers end."""
  tokenizer = source.tokenizer
  if tokenizer is None:
    return []
  chat = plan.chat
  if chat is None:
    if tokenizer.has_template:
      text = 'The chat template of its source, unchanged.'
    elif IM_START in tokenizer.special:
      text = f'ChatML, as in `{TEMPLATE_FILE}`; its source has no chat template.'
    else:
      return []
    return ['', '## Prompt', '', f'{text} Answers are decoded greedily.']

  template = 'ChatML' if chat.template.name == 'chatml' else 'The chat template that the model was trained with'
  turn = chat.system_turn(tokenizer)
  system = 'without a system turn.'
  if turn:
    system = 'which gives a conversation that has no system turn the one that the model was trained with:'
  end = ', '.join(f'`{token}`' for token in chat.template.stop_tokens() if token in tokenizer.special)
  lines = ['', '## Prompt', '', f'{template}, as in `{TEMPLATE_FILE}`, {system}']
  if turn:
    lines += ['', *(f'    {line}' for line in turn.split('\n'))]
  return [*lines, '', f'{f"Answers end at {end} and" if end else "Answers"} are decoded greedily.']


def _hub_name(source: Source) -> str | None:
  """The model on the hub that a run started from. The hub accepts nothing else as `base_model`."""
  run = source.experiment
  if run is None or not run.init or not run.init.startswith(files.HUB):
    return None
  return hub.without_revision(hub.name_of(run.init))


def _title(name: str) -> str:
  """'gsm8k' for 'runs/gsm8k/checkpoints/500'."""
  return name.rstrip('/').split('/checkpoints/')[0].split('/')[-1]


def _training(source: Source, hub_name: str | None) -> list[str]:
  """Lines of the section about a run of ours: where it started, and its settings in a table."""
  start = hub_name or _without_folders(source.experiment.init or 'random weights')
  lines = [
    '',
    '## Training',
    '',
    f'{source.step:,} steps from {start} with the recipe of the Qwen Technical Report, section 5 (cross-entropy on the '
    'assistant turns, AdamW, warmup, then decay), with these settings:',
    '',
    '| setting | value |',
    '|---|---|',
  ]
  for name, value in to_flat(source.experiment).items():
    if name.split('.')[0] in SETTINGS:
      lines.append(f'| `{name}` | {_without_folders(value)} |')
  return lines


def _without_folders(value) -> str:
  """A setting as text. Of paths only the last part: the folders of a machine tell the reader of a card nothing."""
  if isinstance(value, tuple):
    return ', '.join(map(_without_folders, value))
  return value.rstrip('/').split('/')[-1] if isinstance(value, str) else str(value)
