"""The decoder: sizes, layers, cache."""
