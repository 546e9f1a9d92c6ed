"""The training step compiled for TPU slices that are not here."""
