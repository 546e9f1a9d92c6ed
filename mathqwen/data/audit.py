"""`mathqwen data audit`: which tokens of a config's conversations carry loss, beside what other trainers would mask.

4 conversations, template chatml, no system turn
first conversation (mine.jsonl:1), 4 of 15 tokens with loss
  <|im_start|>user
  5! =<|im_end|>
  <|im_start|>assistant
  [[120<|im_end|>]]
                                                 differ  more  less  other ids  refused
prefix difference (verl)                              4     4     0          0        0
{% generation %} marks (transformers, TRL)            0     0     0          0        0
each question and answer on its own (MaxText)         4     4     0          0        0

differ     conversations whose ids or mask are not ours
more, less those with loss on a token where we have none, and with none where we have loss
other ids  those whose ids are not ours; their masks are not compared
refused    those that the template refuses to render in parts
"""

from collections.abc import Sequence

from mathqwen import files
from mathqwen.chat import chat_format
from mathqwen.chat.chat_format import ChatFormat
from mathqwen.chat.conversations import Conversation
from mathqwen.config import DataConfig
from mathqwen.data import encoding, formats, inspect, other_masks, sources
from mathqwen.data.malformed import Malformed
from mathqwen.data.other_masks import BEHAVIOURS, Masked
from mathqwen.errors import UserError
from mathqwen.text.tokenizer import Tokenizer

COUNTS = ('differ', 'more', 'less', 'other_ids', 'refused')
_IDS = ('ids', 'input_ids', 'tokens')  # names of the ids in a row of --against
_MASKS = ('mask', 'loss_mask', 'assistant_masks', 'completion_mask')
_IGNORED = -100  # a label without loss
_LONGEST = 4000  # characters of a conversation that are shown


def audit(
  cfg: DataConfig,
  tokenizer: Tokenizer,
  against: str | None = None,
  limit: int | None = None,
  color: bool = False,
  pairs: bool = False,
) -> dict:
  """Prints the counts and the first conversation that differs for each behaviour. Returns them, for JSON.

  against: a JSON Lines file with the ids and masks (or labels, -100 without loss) that another trainer made of the same
  conversations in their order. limit: of conversations, from the first on. color: for a terminal. pairs: both
  answers of each pair are conversations.
  UserError: when the data, the template or the file cannot be read, or there are other conversations in the file.
  """
  chat = chat_format.for_training(cfg.template, cfg.system_prompt, tokenizer)
  rows = None if against is None else _read(against)[:limit]
  conversations, refused = _render(cfg, chat, tokenizer, limit, pairs)
  if rows is not None and len(rows) != len(conversations):
    raise UserError(
      f'{against} has {len(rows):,} rows and the config {len(conversations):,} conversations: give it a row for each '
      'conversation, in their order, without those that are left out here'
    )

  left_out = f' ({refused} more cannot be rendered)' if refused else ''
  print(f'{len(conversations):,} conversations{left_out}, {chat.describe(tokenizer)}')
  show = _Shown(tokenizer, color)
  where, _, (ids, mask) = conversations[0]
  print(f'first conversation ({where}), {sum(mask):,} of {len(ids):,} tokens with loss')
  print(show.text((ids, mask)))

  renderer = other_masks.Renderer(chat.template, tokenizer)
  found = {}
  for name in BEHAVIOURS:
    theirs = [other_masks.render(name, messages, renderer) for _, messages, _ in conversations]
    found[name] = _compare(conversations, theirs)
  titles = {name: behaviour.about for name, behaviour in BEHAVIOURS.items()}
  if rows is not None:
    found['against'] = _compare(conversations, rows)
    titles['against'] = against
  _print_table(found, titles)
  shown = conversations[0][0]
  for name, result in found.items():
    if (first := result.pop('_first')) is None:
      continue
    where, ours, theirs = first
    if where != shown:
      print(f'{where}, ours:\n{show.text(ours)}')
      shown = where
    print(f'{where}, {titles[name]}:\n{show.text(theirs)}')
  return {
    'conversations': len(conversations),
    'template': chat.template.name,
    'system_prompt': chat.system_turn(tokenizer),
    'loss_tokens': sum(sum(mask) for _, _, (_, mask) in conversations),
    'others': found,
  }


def _render(
  cfg: DataConfig, chat: ChatFormat, tokenizer: Tokenizer, limit: int | None, pairs: bool
) -> tuple[list[tuple[str, Conversation, Masked]], int]:
  """((where, messages, (ids, mask)) of each conversation, how many the template refuses). UserError: when it is all."""
  examples = []
  for source in cfg.sources:
    for example in sources.load_training(source, cfg, chat, pairs)[0]:
      examples += encoding.sides(example)
  conversations = []
  refused = 0
  for example in examples[:limit]:
    messages = encoding.messages_of(example, chat)
    try:
      conversations.append((example.where, messages, chat.template.render_batch([messages], tokenizer)[0]))
    except UserError:
      refused += 1
  if not conversations:
    raise UserError(f'{", ".join(cfg.sources)}: the template renders none of its {refused} conversations')
  return conversations, refused


class _Shown:
  """Conversations as text, with their tokens that have loss marked."""

  def __init__(self, tokenizer: Tokenizer, color: bool):
    self._tokenizer = tokenizer
    self._marks = inspect.GREEN if color else inspect.BRACKETS

  def text(self, masked: Masked | None) -> str:
    """The lines, indented."""
    if masked is None:
      return '  (the template refuses a part of it)'
    ids, mask = masked
    text = inspect.marked(ids, list(map(bool, mask)), self._tokenizer, self._marks)
    text = text if len(text) <= _LONGEST else f'{text[:_LONGEST]}...'
    return '\n'.join(f'  {line}' for line in text.rstrip('\n').split('\n'))


def _compare(conversations: Sequence[tuple], theirs: Sequence[Masked | None]) -> dict:
  """COUNTS, where the first that differs is, and `_first`: (where, ours, theirs)."""
  counts = dict.fromkeys(COUNTS, 0)
  first = None
  for (where, _, ours), other in zip(conversations, theirs, strict=True):
    kinds = _kinds(ours, other)
    for kind in kinds:
      counts[kind] += 1
    if kinds:
      counts['differ'] += 1
      first = first or (where, ours, other)
  return {**counts, 'first': first[0] if first else None, '_first': first}


def _kinds(ours: Masked, theirs: Masked | None) -> list[str]:
  """In which ways a conversation differs; [] when it does not."""
  if theirs is None:
    return ['refused']
  if list(theirs[0]) != list(ours[0]):
    return ['other_ids']
  pairs = set(zip(map(bool, ours[1]), map(bool, theirs[1]), strict=True))
  return [kind for kind, pair in (('more', (False, True)), ('less', (True, False))) if pair in pairs]


def _print_table(found: dict, titles: dict[str, str]) -> None:
  width = max(map(len, titles.values()))
  heads = [name.replace('_', ' ') for name in COUNTS]
  print(' ' * width + ''.join(f'  {head:>6}' for head in heads))
  for name, result in found.items():
    cells = ''.join(f'  {result[kind]:>{max(6, len(head))},}' for kind, head in zip(COUNTS, heads, strict=True))
    print(f'{titles[name]:<{width}}{cells}')


# --- what another trainer wrote ---


def _read(against: str) -> list[Masked]:
  """The rows of --against. UserError: when one is not ids and a mask."""
  path = files.path(against)
  return [_row(value, f'{path}:{line}') for line, value in formats.records(path)]


def _row(value: object, where: str) -> Masked:
  if not isinstance(value, dict):
    found = str(value) if isinstance(value, Malformed) else 'not a JSON object'
    raise UserError(f'{where}: {found}; write ids and mask, or ids and labels')
  ids = next((value[name] for name in _IDS if name in value), None)
  mask = next((value[name] for name in _MASKS if name in value), None)
  labels = value.get('labels')
  if not _are_numbers(ids) or not (_are_numbers(mask) or _are_numbers(labels)):
    raise UserError(f'{where}: expected a list {"|".join(_IDS)}, and a list {"|".join(_MASKS)} or labels')
  if mask is None:
    mask = [int(label != _IGNORED) for label in labels]
  others = labels if _are_numbers(labels) else mask
  if len(mask) != len(ids) or len(others) != len(ids):
    raise UserError(f'{where}: {len(ids)} ids and {len(others)} labels or mask values: give one for each id')
  if labels is not None:
    wrong = next((i for i, (a, b) in enumerate(zip(ids, labels, strict=True)) if b not in (a, _IGNORED)), None)
    if wrong is not None:
      raise UserError(
        f'{where}: the label at {wrong} is {labels[wrong]} and the id there is {ids[wrong]}: labels are the ids '
        'themselves, not shifted, or -100'
      )
  if (kept := value.get('attention_mask')) is not None and _are_numbers(kept) and len(kept) == len(ids):
    ids, mask = ([x for x, keep in zip(part, kept, strict=True) if keep] for part in (ids, mask))
  return list(ids), list(mask)


def _are_numbers(value: object) -> bool:
  return isinstance(value, list) and all(isinstance(x, int | float) for x in value)
