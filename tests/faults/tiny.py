"""Twelve steps of a model of 20,000 parameters, for chaos.py and measure_flat.py. Each has a line in the metrics."""

from mathqwen.config import DataConfig, Experiment, OptimConfig, TrainConfig
from mathqwen.model.config import ModelConfig

config = Experiment(
  model=ModelConfig(
    vocab_size=1024,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    tie_word_embeddings=True,
  ),
  data=DataConfig(sources=('train.jsonl',), seq_len=32, batch_size=8, eval_examples=8),
  optim=OptimConfig(learning_rate=3e-3, warmup_steps=2),
  train=TrainConfig(
    steps=12, compute_dtype='float32', remat='none', log_every=1, eval_every=5, checkpoint_every=3, keep_checkpoints=9
  ),
)
