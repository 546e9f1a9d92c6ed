"""Text to ids and back: tokenizers, ChatML, and the loss mask of a conversation."""
