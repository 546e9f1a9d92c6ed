"""Math models of the Qwen family with JAX and Flax on TPU pods.

model = mathqwen.load(path)                     a Hugging Face directory or a run's --workdir
model.generate(['What is 12 + 30?'])            answers
model.logits(tokens_BT)                         float32 [B, T, V]
mathqwen.render(messages, tokenizer)            ChatML ids and their loss mask
%load_ext mathqwen                              the command line in a notebook, as %mathqwen
"""

__version__ = '0.1.0'
__all__ = ['UserError', 'load', 'load_tokenizer', 'render']


def __getattr__(name):
  # Imported when first used: `import mathqwen` alone starts neither JAX nor an accelerator.
  if name == 'load':
    from mathqwen.api import load

    return load
  if name == 'render':
    from mathqwen.text.chatml import render

    return render
  if name == 'load_tokenizer':
    from mathqwen.text.loading import load_tokenizer

    return load_tokenizer
  if name == 'UserError':
    from mathqwen.errors import UserError

    return UserError
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def load_ipython_extension(shell):
  from mathqwen import notebook

  notebook.load(shell)
