"""A conversation on the terminal."""

import sys

from mathqwen.errors import UserError


def interact(model, options: dict) -> dict:
  """Reads questions from standard input until its end, keeping the conversation; an empty line starts a new one."""
  messages: list[dict] = []
  turns = 0
  print('Ask a question; an empty line starts a new conversation, Ctrl-D ends.', file=sys.stderr)
  while True:
    try:
      question = input('> ' if sys.stdin.isatty() else '')
    except EOFError:
      return {'turns': turns}
    if not question.strip():
      messages = []
      continue
    asked = [*messages, {'role': 'user', 'content': question}]
    try:
      (ids,) = model.generate_ids([model.prompt(asked)], **options)
    except UserError as error:  # no room is left for an answer
      print(f'{error} (an empty line starts a new conversation)', file=sys.stderr)
      continue
    messages = [*asked, {'role': 'assistant', 'content': model.tokenizer.decode(ids)}]
    turns += 1
    print(messages[-1]['content'], flush=True)
