"""Models from one form to another, and two models compared.

For other folders to use; nothing is imported here, so that the command line starts without JAX:

  to_hf.convert_to_hf      a Hugging Face directory from a MODEL
  to_adapter.export_adapter  the adapters of a run alone, as PEFT's files
  from_hf.convert_from_hf  a checkpoint of ours from a Hugging Face directory
  check.compare_models     two MODELs, by their logits
"""

__all__ = ['check', 'from_hf', 'to_adapter', 'to_hf']
