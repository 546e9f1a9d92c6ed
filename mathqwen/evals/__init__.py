"""Benchmarks, graders, records and Table 12. `run.evaluate` needs a model; everything else runs without JAX."""
