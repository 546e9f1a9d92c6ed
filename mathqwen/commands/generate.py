"""`mathqwen generate`"""

import argparse

from mathqwen.commands import _devices, _flags, _models
from mathqwen.errors import report

HELP = 'answer questions; without a question, chat'


def add_flags(parser: _flags.Parser) -> None:
  """Adds MODEL, the questions, and how answers are drawn."""
  _flags.add_model(parser)
  parser.add_argument(
    'questions', nargs='*', metavar='QUESTION', help='each is answered on its own; without one, a chat starts'
  )
  parser.add_argument(
    '--max-new-tokens',
    type=int,
    metavar='N',
    help="longest answer, in tokens (default: 512, or as many as the model's positions allow)",
  )
  parser.add_argument(
    '--temperature', type=float, default=0.0, metavar='X', help='divides the logits; 0 is greedy (default)'
  )
  parser.add_argument(
    '--top-p',
    type=float,
    default=1.0,
    metavar='X',
    help='draw from the likeliest tokens that together have probability X (default: 1, all)',
  )
  parser.add_argument(
    '--top-k', type=int, default=0, metavar='N', help='draw from the N likeliest tokens (default: 0, all)'
  )
  parser.add_argument('--seed', type=int, default=0, metavar='N', help='of the random draws (default: 0)')
  _flags.add_chat(parser)
  _flags.add_dtype(parser)
  _flags.add_platform(parser)


def run(args: argparse.Namespace) -> dict:
  """Answers the questions, or chats when there are none. The JSON: `answers`, `template` and `system_prompt`."""
  options = {name: getattr(args, name) for name in ('max_new_tokens', 'temperature', 'top_p', 'top_k', 'seed')}
  _devices.start(args)
  model, read = _models.open_on_this_host(args.model, args.dtype, args.template, args.system, args.weights)
  asked = {}
  if model.tokenizer is not None:
    report(model.chat.describe(model.tokenizer))
    asked = {'template': model.chat.template.name, 'system_prompt': model.chat.system_turn(model.tokenizer)}
  prompts = [model.prompt([{'role': 'user', 'content': question}]) for question in args.questions]
  model.check(prompts, **options)  # before the weights are read, which takes a while
  model.params = read()

  if not args.questions:
    from mathqwen.inference import chat

    return chat.interact(model, options) | asked
  answers = model.generate(args.questions, **options)
  for answer in answers:
    print(answer)
  return {'answers': answers} | asked
