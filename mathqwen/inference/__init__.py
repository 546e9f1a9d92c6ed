"""Answers from weights: continuous batching, sampling, a conversation."""
