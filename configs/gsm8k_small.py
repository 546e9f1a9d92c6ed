"""A 5M-parameter Qwen from random weights on GSM8K, on a laptop: to see the recipe at work on real text, not solve it.

mathqwen data prepare gsm8k
mathqwen train gsm8k_small --workdir runs/gsm8k-small
"""

from mathqwen.config import DataConfig, Experiment, OptimConfig, TrainConfig
from mathqwen.model.config import ModelConfig

config = Experiment(
  model=ModelConfig(
    vocab_size=1024,
    hidden_size=256,
    intermediate_size=704,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=32,
    max_position_embeddings=2048,
    tie_word_embeddings=True,
    qkv_bias=False,  # as in Qwen3, whose model class in transformers accepts a tokenizer other than Qwen's
    qk_norm=True,
  ),
  data=DataConfig(sources=('gsm8k',), batch_size=4),
  optim=OptimConfig(learning_rate=1e-3, warmup_steps=50),
  train=TrainConfig(
    steps=200, dropout=0.0, compute_dtype='float32', remat='none', eval_every=100, checkpoint_every=100
  ),
)
