"""Text to ids and back: tokenizers.

For other folders to use; nothing is imported here, so that each module costs only what it needs:

  loading.load_tokenizer     the tokenizer of a directory, or the small one in this package
  tokenizer.Tokenizer        what every tokenizer can do; subclasses in huggingface, rank_file, sentencepiece_model
  bpe                        Qwen's special tokens, and conversions between vocabulary files
  thinking_tags              the marks around the thinking of published models
  testing                    a tiny tokenizer of Qwen2's kind, for tests
"""

__all__ = [
  'bpe',
  'huggingface',
  'loading',
  'rank_file',
  'sentencepiece_model',
  'testing',
  'thinking_tags',
  'tokenizer',
]
