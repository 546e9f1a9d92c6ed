"""Conversations to ids and loss mask, by ChatML or by any Jinja chat template.

For other folders to use; nothing is imported here, so that each module costs only what it needs:

  chatml.render, .prompt     conversation -> ids and loss mask; conversation -> the ids that ask for the next answer
  templates.load             the same for any Jinja chat template
  chat_format.ChatFormat     what every prompt of a model is made with: its template and its system turn
  thinking                   whether an answer ends in its thinking, and how that is closed
  conversations              what a conversation may be where a chat template is in force

Behind templates.py, from a conversation to ids:

  rendering                  template, conversation and tokenizer together
  engine, engine_functions   Jinja as transformers sets it up, in a sandbox with limits
  traced, traced_values      texts whose characters know where they come from
  answers                    which characters the assistant has to generate
  whole                      ids of a whole rendered conversation, and which of them have loss
  probe                      tries a template in a process of its own
"""

__all__ = [
  'chat_format',
  'chatml',
  'conversations',
  'rendering',
  'templates',
  'thinking',
  'traced',
  'whole',
]
