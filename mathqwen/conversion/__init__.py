"""Models from one form to another: Hugging Face directories and checkpoints of ours, and their comparison."""
