r"""ChatML: the one definition of the prompt and of the loss mask, shared by training, generation and evaluation.

  text   <|im_start|> user \n 5 ! = ? <|im_end|> \n <|im_start|> assistant \n  120  <|im_end|> \n
  ids         S         u  \n 5 ! = ?     E      \n      S           a     \n  1 2 0     E      \n
  mask        0         0  0  0 0 0 0     0      0       0           0     0   1 1 1     1      0
                                          prompt() ends here, generation starts ^

The loss covers each assistant turn's content and its <|im_end|>, by position, never by token value: '!' is id 0 in
Qwen's vocabulary, and '5!' is mathematics. An assistant turn with 'weight': 0 has no loss. Turns are rendered exactly
as given; no default system turn is added.

A system or user turn is encoded as one text: role, newline and content. An assistant turn is encoded in two parts,
'assistant\n' and the answer, because generation sees that boundary: the first part ends the prompt. Hugging Face
encodes both as one text. So its ids may differ when an answer starts with white space that contains a newline ('\n\n'
is one token in Qwen's vocabulary); the text is always the same. Text that looks like a special token stays text here;
Hugging Face turns it into the token.

ids and mask are of the same length here. `data/packing.py` shifts them against each other into tokens and targets.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mathqwen.errors import UserError

if TYPE_CHECKING:  # tokenizer.py imports CHAT_TEMPLATE from here
  from mathqwen.text.tokenizer import Tokenizer

ROLES = ('system', 'user', 'assistant')

# The same rendering as a template for Hugging Face. {% generation %} marks the loss mask, which trl reads.
CHAT_TEMPLATE = (
  '{%- for message in messages %}'
  "{%- if message['role'] == 'assistant' %}"
  "{{- '<|im_start|>assistant\\n' }}"
  "{% generation %}{{- message['content'] + '<|im_end|>' }}{% endgeneration %}"
  "{{- '\\n' }}"
  '{%- else %}'
  "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
  '{%- endif %}'
  '{%- endfor %}'
  "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def render(messages: Sequence[Mapping[str, str]], tokenizer: 'Tokenizer') -> tuple[list[int], list[int]]:
  """(ids of the turns, loss mask of the same length): 1 where the token is trained on, 0 elsewhere.

  messages: {'role': ..., 'content': ...} each; an assistant turn may have 'weight' 0, and is then not trained on.

  UserError: when `check` refuses the messages, or the tokenizer has no ChatML tokens.
  """
  return render_batch([messages], tokenizer)[0]


def prompt(messages: Sequence[Mapping[str, str]], tokenizer: 'Tokenizer') -> list[int]:
  """Ids of the turns and of the header that asks for the next answer: '<|im_start|>assistant' and a newline.

  UserError: as `render`.
  """
  ids, _ = render(messages, tokenizer)
  return ids + [tokenizer.im_start, *tokenizer.encode('assistant\n')]


def render_batch(
  conversations: Sequence[Sequence[Mapping[str, str]]], tokenizer: 'Tokenizer'
) -> list[tuple[list[int], list[int]]]:
  """`render` of each conversation, with a single call of the tokenizer, which is many times faster."""
  texts = ['assistant\n', '\n']
  for messages in conversations:
    check(messages)
    for message in messages:
      if message['role'] == 'assistant':
        texts.append(message['content'])
      else:
        texts.append(f'{message["role"]}\n{message["content"]}')

  encoded = iter(tokenizer.encode_batch(texts))
  start = [tokenizer.im_start]
  end = [tokenizer.im_end]
  header = start + next(encoded)  # of an assistant turn
  newline = next(encoded)

  rendered = []
  for messages in conversations:
    ids = []
    mask = []
    for message in messages:
      content = next(encoded)
      if message['role'] == 'assistant':
        ids += header + content + end + newline
        loss = int(has_loss(message))
        mask += [0] * len(header) + [loss] * (len(content) + len(end)) + [0] * len(newline)
      else:
        turn = start + content + end + newline
        ids += turn
        mask += [0] * len(turn)
    rendered.append((ids, mask))
  return rendered


def check(messages: Sequence[Mapping[str, str]]) -> None:
  """UserError unless `messages` is a list of {'role': 'system' | 'user' | 'assistant', 'content': text}.

  A turn may also have a `weight`: see `has_loss`.
  """
  if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
    raise UserError("no messages; give a list such as [{'role': 'user', 'content': '1 + 1 ='}]")
  for index, message in enumerate(messages):
    if not isinstance(message, Mapping):
      raise UserError(f'message {index}: {type(message).__name__}, expected {{"role": ..., "content": ...}}')
    if set(message) - {'weight'} != {'role', 'content'}:
      found = ', '.join(map(repr, message)) or 'none'
      raise UserError(
        f"message {index}: expected the keys 'role' and 'content' and no others, found {found} (an assistant's turn "
        "may also have 'weight')"
      )
    if message['role'] not in ROLES:
      raise UserError(f'message {index}: unknown role {message["role"]!r}; use one of {", ".join(ROLES)}')
    if not isinstance(message['content'], str):
      found = type(message['content']).__name__
      raise UserError(f'message {index} ({message["role"]}): content is {found}, expected text')
    try:
      has_loss(message)
    except ValueError as error:
      raise UserError(f'message {index} ({message["role"]}): {error}') from None


def has_loss(message: Mapping) -> bool:
  """Whether a turn is trained on: each assistant turn is, unless its `weight` is 0.

  ValueError: when the weight is neither 0 nor 1 (of any type of number; None is as if it was not there), or not that of
  an assistant's turn.
  """
  weight = message.get('weight')
  if weight is not None and not (isinstance(weight, int | float) and weight in (0, 1)):
    raise ValueError(f'weight is {weight!r}: it must be 0 (not trained on) or 1')
  if message['role'] == 'assistant':
    return weight is None or weight == 1
  if weight:
    raise ValueError('weight is 1: only the turns of the assistant can be trained on')
  return False
