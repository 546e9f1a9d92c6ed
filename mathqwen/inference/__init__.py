"""Answers from weights.

For other folders to use; nothing is imported here, because most of it imports JAX:

  model       `load` and `open_model`; `Model`: logits, answers to questions or to ids, export
  sampling    `Sampling` and `AnswerRequest`, plain data without JAX
  generate    `generate`, continuous batching of ids; `Execution`, `check`, `decoder_for`
  shapes      the few static shapes that `generate` runs on, without JAX
  chat        `interact`, a conversation on the terminal

Only for `generate`: `budget`, which closes thinking, and `cpu`, a layout of weights and cache in which a CPU decodes
faster.
"""

__all__ = ['chat', 'generate', 'model', 'sampling', 'shapes']
