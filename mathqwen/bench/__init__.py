"""Tokens per second of this machine, with the other side of a comparison."""
