"""SmolLM2-135M-Instruct on GSM8K, on two CPU cores in hours: a pretrained model small enough to be fine-tuned anywhere.

mathqwen data prepare gsm8k
mathqwen train gsm8k_smollm2 --workdir runs/gsm8k-smollm2
"""

from mathqwen.config import DataConfig, Experiment, OptimConfig, TrainConfig
from mathqwen.model.config import ModelConfig

config = Experiment(
  model=ModelConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    max_position_embeddings=8192,
    rope_theta=100_000.0,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    qkv_bias=False,
  ),
  init='HuggingFaceTB/SmolLM2-135M-Instruct',
  data=DataConfig(sources=('gsm8k',), seq_len=512, batch_size=2, template='own'),
  optim=OptimConfig(learning_rate=1e-4, warmup_steps=20),
  train=TrainConfig(steps=200, dropout=0.0, compute_dtype='float32', remat='none', eval_every=100, checkpoint_every=50),
)
