"""Verdicts on answers: extraction and rules. Standard library and math-verify only."""
