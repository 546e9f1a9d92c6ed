"""Chips, slices and what they can do; meshes; several hosts as one run."""
