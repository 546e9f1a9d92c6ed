"""Where weights are stored: the checkpoints of a run, and a MODEL wherever it is.

For other folders to use; nothing is imported here, because Orbax takes a second to import:

  source.open_source, .Source           a MODEL: Hugging Face directory, name on the hub, or checkpoint of ours
  checkpoint.Checkpoints                saves and restores the state of a run
  checkpoint.claim, .check_space        whether a run may use a workdir, and whether its disk is large enough
  checkpoint.write_model, .StepWeights  a converted model, written and read one weight at a time
  checkpoint.find_checkpoint, .is_converted        which run and step a path names
  provenance.code, .begin_session       what made a result; the sessions of a run
"""

__all__ = ['checkpoint', 'provenance', 'source']
