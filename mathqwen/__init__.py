"""Math models of the Qwen family with JAX and Flax on TPU pods.

model = mathqwen.load(path)                          a Hugging Face directory or a run's --workdir
model.generate(['What is 12 + 30?'])                 answers
model.logits(tokens_BT)                              float32 [B, T, V]
mathqwen.render(messages, tokenizer)                 ChatML ids and their loss mask
mathqwen.train('gsm8k_small', 'runs/small')          as `mathqwen train`; returns its JSON
mathqwen.evaluate(model, ['gsm8k'], limit=100)       as `mathqwen evaluate`; returns its JSON
%load_ext mathqwen                                   the command line in a notebook, as %mathqwen
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from mathqwen.api import evaluate, load, train
  from mathqwen.chat.chatml import render
  from mathqwen.errors import UserError
  from mathqwen.text.loading import load_tokenizer

__version__ = '0.1.0'
__all__ = ['UserError', 'evaluate', 'load', 'load_tokenizer', 'render', 'train']

# Where each public name comes from. They are imported when first used: `import mathqwen` alone starts neither JAX nor
# an accelerator.
_MODULES = {
  'UserError': 'mathqwen.errors',
  'evaluate': 'mathqwen.api',
  'load': 'mathqwen.api',
  'load_tokenizer': 'mathqwen.text.loading',
  'render': 'mathqwen.chat.chatml',
  'train': 'mathqwen.api',
}


def __getattr__(name: str):
  if name not in _MODULES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
  own = [name for name in globals() if name.startswith('__')]
  return sorted([*own, *__all__, 'load_ipython_extension'])


def load_ipython_extension(shell):
  """Registers %mathqwen in an IPython shell; `%load_ext mathqwen` calls this."""
  from mathqwen import notebook

  notebook.load(shell)
