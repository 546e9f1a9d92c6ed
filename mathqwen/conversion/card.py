"""The model card of an export: what it is, how it was trained, how it scored. Every figure is read from a file."""

from mathqwen import files, hf
from mathqwen.chat.chat_format import TEMPLATE_FILE
from mathqwen.evals.report import table
from mathqwen.files import hub
from mathqwen.model.quantized import KINDS
from mathqwen.settings import to_flat
from mathqwen.storage import provenance
from mathqwen.storage.source import Source
from mathqwen.text.bpe import IM_START

VLLM_RANKS = (16, 32, 64, 128, 256, 320, 512)  # that its --max-lora-rank takes; the first is its default
SETTINGS = ('data', 'optim', 'train')  # sections of the config that the card lists


def model_card(
  source: Source, plan: hf.ExportPlan, dtype: str | None, scores: list[str], is_adapter: bool = False
) -> str:
  """Markdown with the front matter that the Hugging Face hub reads.

  plan: of the export. dtype: of the files; None: each weight's own. scores: directories that `evaluate --out` wrote.
  is_adapter: whether the files have the adapters of the run alone.
  UserError: when there are no scores in one of the directories.
  """
  library = 'peft' if is_adapter else 'transformers'
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
  if is_adapter and source.tokenizer is not None and plan.layout != 'qwen1':  # which needs code of its own
    lines += _use(source)
  if source.is_run:
    lines += _training(source, hub_name, is_adapter)
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
  return None if run is None or not run.init else _published(run.init)


def _published(name: str) -> str | None:
  """The name on the hub of a MODEL, as a run records it; None for a directory."""
  return hub.without_revision(hub.name_of(name)) if name.startswith(files.HUB) else None


def _title(name: str) -> str:
  """'gsm8k' for 'runs/gsm8k/checkpoints/500'."""
  return name.rstrip('/').split('/checkpoints/')[0].split('/')[-1]


def _use(source: Source) -> list[str]:
  """Lines of the section with commands that ask an adapter with its prompt, and stop where its answers end."""
  adapter, weights = source.experiment.train.adapter, source.weights
  hub_name = _published(weights.base_name)
  base = hub_name if hub_name is not None and weights.layout is not None else 'BASE'
  what = '`adapter` is this directory'
  if weights.layout is None:
    what += f', `BASE` what `mathqwen convert to-hf` writes from {hub_name or _title(weights.base_name)}'
  elif hub_name is None:
    what += f', `BASE` that of {_title(weights.base_name)}'
  lines = [
    '',
    '## Use',
    '',
    f'{what}. It has the prompt and the stop ids of the training. With `peft`:',
    '',
    f"    base = AutoModelForCausalLM.from_pretrained('{base}')",
    "    model = PeftModel.from_pretrained(base, 'adapter')",
    "    model.generation_config = GenerationConfig.from_pretrained('adapter')",
    "    tokenizer = AutoTokenizer.from_pretrained('adapter')",
    '',
  ]
  if adapter.dora:
    return [*lines, 'vLLM loads no DoRA: `mathqwen convert to-hf` without `--adapter` writes the merged model.']
  rank = next((f' --max-lora-rank {rank}' for rank in VLLM_RANKS if adapter.rank <= rank), '')
  command = f'vllm serve {base} --enable-lora --lora-modules math=adapter{rank}'
  return [*lines, 'With vLLM:', '', f'    {command} --tokenizer adapter --generation-config adapter']


def _training(source: Source, hub_name: str | None, is_adapter: bool) -> list[str]:
  """Lines of the section about a run of ours: what it trained, from where and how, and its settings in a table."""
  start = hub_name or _without_folders(source.experiment.init or 'random weights')
  train = source.experiment.train
  adapter = train.adapter
  lines = ['', '## Training', '']
  if adapter.rank:
    merged = f'{"the dequantised base" if adapter.base in KINDS else "the base"}, with the adapters merged into it'
    lines += [
      f'{"DoRA" if adapter.dora else "LoRA"} adapters of rank {adapter.rank} on a base that was frozen in '
      f'{adapter.base}. These files are {"the adapters alone" if is_adapter else merged}.',
      '',
    ]
  if train.objective == 'dpo':
    how = (
      'DPO (arXiv 2305.18290) on pairs of a chosen and a rejected answer, against the model that it began with (form '
      f'{train.dpo_form}, beta {train.dpo_beta:g})'
    )
  elif adapter.rank:
    how = 'cross-entropy on the assistant turns'
  else:
    how = (
      'the recipe of the Qwen Technical Report, section 5 (cross-entropy on the assistant turns, AdamW, warmup, then '
      'decay)'
    )
  lines += [
    f'{source.step:,} steps from {start} with {how}, with these settings:',
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
