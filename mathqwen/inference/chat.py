"""A conversation on the terminal."""

import sys

from mathqwen.errors import UserError, report
from mathqwen.inference.model import Model


def interact(model: Model, options: dict) -> dict:
  """Answers the questions on standard input until it ends. Returns {'turns': the number of answers}.

  Each question is asked after the ones before it and their answers; an empty line starts a new conversation.
  options: keyword arguments of `Model.generate_ids`.
  """
  messages: list[dict] = []
  turns = 0
  report('Ask a question; an empty line starts a new conversation, Ctrl-D ends.')
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
    except UserError as error:  # the conversation is too long for another answer: let the user start a new one
      report(f'{error} (an empty line starts a new conversation)')
      continue
    messages = [*asked, {'role': 'assistant', 'content': model.text(ids)}]
    turns += 1
    print(messages[-1]['content'], flush=True)
