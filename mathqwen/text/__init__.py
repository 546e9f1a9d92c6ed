"""Text to ids and back: tokenizers, and the ids and loss mask of a conversation.

For other folders to use; nothing is imported here, so that each module costs only what it needs:

  loading.load_tokenizer     the tokenizer of a directory, or the small one in this package
  tokenizer.Tokenizer        what every tokenizer can do; subclasses in huggingface, rank_file, sentencepiece_model
  chatml.render, .prompt     conversation -> ids and loss mask; conversation -> the ids that ask for the next answer
  templates.load             the same for any Jinja chat template
  declared_stops             the stop ids that generation_config.json and config.json declare
  chat_format.ChatFormat     what every prompt of a model is made with: its template and system turn
  bpe                        Qwen's special tokens, and conversions between vocabulary files
  testing                    a tiny tokenizer of Qwen2's kind, for tests
"""

__all__ = [
  'bpe',
  'chat_format',
  'chatml',
  'conversations',
  'declared_stops',
  'huggingface',
  'loading',
  'rank_file',
  'rendering',
  'sentencepiece_model',
  'templates',
  'testing',
  'tokenizer',
  'traced',
  'whole',
]
