"""A conversation on the terminal."""

import sys

from mathqwen.data import chatml


def interact(model, options: dict) -> dict:
  """Reads questions from standard input until its end, keeping the conversation; an empty line starts a new one."""
  messages: list[dict] = []
  print('Ask a question; an empty line starts a new conversation, Ctrl-D ends.', file=sys.stderr)
  while True:
    try:
      question = input('> ' if sys.stdin.isatty() else '')
    except EOFError:
      return {'turns': len(messages) // 2}
    if not question.strip():
      messages = []
      continue
    messages.append({'role': 'user', 'content': question})
    (ids,) = model.generate_ids([chatml.prompt(messages, model.tokenizer)], **options)
    messages.append({'role': 'assistant', 'content': model.tokenizer.decode(ids)})
    print(messages[-1]['content'], flush=True)
