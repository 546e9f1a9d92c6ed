r"""ChatML: the one definition of the prompt and of the loss mask, shared by training, generation and evaluation.

  text   <|im_start|> user \n 5 ! = ? <|im_end|> \n <|im_start|> assistant \n  120  <|im_end|> \n
  ids         S         u  \n 5 ! = ?     E      \n      S           a     \n  1 2 0     E      \n
  mask        0         0  0  0 0 0 0     0      0       0           0     0   1 1 1     1      0
                                          prompt() ends here, generation starts ^

The loss covers each assistant turn's content and its <|im_end|>, by position, never by token value: '!' is id 0 in
Qwen's vocabulary, and '5!' is mathematics. Turns are rendered literally as given; no system turn is made up.

A system or user turn is encoded as one text, role, newline and content. An assistant turn is encoded in two, because
that is the boundary generation sees: the prompt's 'assistant\n', then the answer. Hugging Face encodes them as one,
so for an answer that itself begins with white space holding a newline its ids may differ ('\n\n' is one token in Qwen's
vocabulary); the text never does. Text that looks like a special token stays text here; Hugging Face makes it the token.
"""

from collections.abc import Mapping, Sequence

from mathqwen.errors import UserError

ROLES = ('system', 'user', 'assistant')

# The same rendering for Hugging Face; {% generation %} marks the loss mask for trl.
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


def render(messages: Sequence[Mapping[str, str]], tokenizer) -> tuple[list[int], list[int]]:
  """Ids of the turns and, of the same length, the mask: 1 where the token is to be learnt."""
  return render_batch([messages], tokenizer)[0]


def prompt(messages: Sequence[Mapping[str, str]], tokenizer) -> list[int]:
  """Ids of the turns and of the header that asks for the next answer: '<|im_start|>assistant' and a newline."""
  return render(messages, tokenizer)[0] + [tokenizer.im_start, *tokenizer.encode('assistant\n')]


def render_batch(conversations: Sequence[Sequence[Mapping[str, str]]], tokenizer) -> list[tuple[list[int], list[int]]]:
  """`render` of many conversations, with one call of the tokenizer."""
  texts = ['assistant\n', '\n']
  for messages in conversations:
    check(messages)
    texts += [m['content'] if m['role'] == 'assistant' else f'{m["role"]}\n{m["content"]}' for m in messages]
  encoded = iter(tokenizer.encode_batch(texts))
  header, newline = [tokenizer.im_start, *next(encoded)], next(encoded)
  start, end = [tokenizer.im_start], [tokenizer.im_end]
  no_header, no_newline = [0] * len(header), [0] * len(newline)
  rendered = []
  for messages in conversations:
    ids, mask = [], []
    for message in messages:
      content = next(encoded)
      if message['role'] == 'assistant':
        ids += header + content + end + newline
        mask += no_header + [1] * (len(content) + 1) + no_newline
      else:
        ids += start + content + end + newline
        mask += [0] * (len(content) + 2) + no_newline
    rendered.append((ids, mask))
  return rendered


def check(messages: Sequence[Mapping[str, str]]) -> None:
  """UserError unless `messages` is a list of {'role': system | user | assistant, 'content': text}."""
  if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
    raise UserError("no messages; give a list such as [{'role': 'user', 'content': '1 + 1 ='}]")
  for index, message in enumerate(messages):
    if not isinstance(message, Mapping) or set(message) != {'role', 'content'}:
      found = sorted(map(str, message)) if isinstance(message, Mapping) else type(message).__name__
      raise UserError(f"message {index}: wants the keys 'role' and 'content' and no others, found {found}")
    if message['role'] not in ROLES:
      raise UserError(f'message {index}: unknown role {message["role"]!r}; use one of {", ".join(ROLES)}')
    if not isinstance(message['content'], str):
      kind = type(message['content']).__name__
      raise UserError(f'message {index} ({message["role"]}): content is {kind}, wants text')
