"""Training batches of tokenised sources, without a config."""

from mathqwen.data import pipeline


def train_batches(
  sources, weights, batch_size, seq_len, seed, shard=(0, 1), filled_to=None, share_prompts=False, epochs=(), pairs=False
):
  """As `TrainingData.train` gives them with these settings and nothing held out."""
  how = (sources, weights, seq_len, seed, share_prompts, epochs, pairs)
  rows, same = pipeline.packed_rows(*how), pipeline.fingerprint(*how)
  return pipeline.TrainBatches(rows, batch_size, shard, same, filled_to)
