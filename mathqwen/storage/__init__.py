"""Where weights are stored: checkpoints of ours, and a MODEL wherever it is."""
