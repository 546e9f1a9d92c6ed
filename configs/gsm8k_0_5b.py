"""Qwen2.5-0.5B on GSM8K, on one accelerator of 16 GB or more (a Colab TPU): two epochs in packed rows of 1,024.

mathqwen data prepare gsm8k
mathqwen train gsm8k_0_5b --init Qwen/Qwen2.5-0.5B --workdir runs/gsm8k-0.5b
"""

from mathqwen.config import DataConfig, Experiment, OptimConfig, TrainConfig
from mathqwen.model.config import PRESETS

config = Experiment(
  model=PRESETS['Qwen2.5-0.5B'],
  init='Qwen/Qwen2.5-0.5B',
  data=DataConfig(sources=('gsm8k',), batch_size=16),
  optim=OptimConfig(warmup_steps=10),
  train=TrainConfig(steps=150, micro_batches=4, eval_every=50, checkpoint_every=50),
)
