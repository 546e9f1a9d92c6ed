"""Where weights are stored: the checkpoints of a run, and a MODEL wherever it is.

For other folders to use; nothing is imported here, because Orbax takes a second to import:

  source.open_source, .Source           a MODEL: Hugging Face directory, name on the hub, or checkpoint of ours
  checkpoint.Checkpoints, .check_space  saves and restores the state of a run; whether its disk is large enough
  checksums.examine, .of_files          what is written with a checkpoint, and compared whenever it is read
  workdir.claim, .write_tokenizer       whose run a workdir is, and what it holds beside the checkpoints
  workdir.find_checkpoint, .is_converted           which run and step a path names
  base.read, .MergedWeights             the frozen base of a run with adapters, and both together
  converted.write_model, .StepWeights   a converted model, written and read one weight at a time
  provenance.code, .begin_session       what made a result; the sessions of a run
"""

__all__ = ['base', 'checkpoint', 'checksums', 'converted', 'provenance', 'source', 'workdir']
