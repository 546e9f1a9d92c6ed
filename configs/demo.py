"""A small Qwen from random weights, on generated arithmetic: the recipe scaled down to minutes on two CPU cores.

mathqwen demo
"""

from mathqwen.config import DataConfig, Experiment, OptimConfig, TrainConfig
from mathqwen.data.arithmetic import MIX
from mathqwen.model.config import ModelConfig

config = Experiment(
  model=ModelConfig(
    vocab_size=1024,
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=256,
    rope_theta=500.0,  # most of what it looks up is less than a hundred tokens away
    tie_word_embeddings=True,
    qkv_bias=False,  # as in Qwen3, whose model class in transformers accepts a tokenizer other than Qwen's
    qk_norm=True,
    initializer_range=0.08,  # about 1 / sqrt(hidden_size); 0.02 suits wider models and learns more slowly here
  ),
  data=DataConfig(
    sources=tuple(f'mathqwen-demo/data/arithmetic/train/{group}.jsonl' for group in MIX),
    weights=tuple(MIX.values()),
    seq_len=160,
    batch_size=8,
  ),
  optim=OptimConfig(learning_rate=4e-3, warmup_steps=50),
  train=TrainConfig(
    steps=2000,
    dropout=0.0,
    compute_dtype='float32',
    remat='none',
    eval_every=500,
    checkpoint_every=1000,
  ),
)
