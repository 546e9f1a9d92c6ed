"""Qwen2.5-7B on GSM8K and MATH, on 16 TPU chips: full fine-tuning, three epochs in packed rows of 1,024.

mathqwen plan qwen2_5_7b --topology v5p-32 --topology v6e-16 --topology v5e-16
mathqwen data prepare gsm8k
mathqwen data prepare math --data-dir DIR
mathqwen train qwen2_5_7b --init Qwen/Qwen2.5-7B --workdir gs://BUCKET/qwen2.5-7b --distributed
"""

from mathqwen.config import DataConfig, Experiment, OptimConfig, TrainConfig
from mathqwen.model.config import PRESETS

config = Experiment(
  model=PRESETS['Qwen2.5-7B'],
  init='Qwen/Qwen2.5-7B',
  data=DataConfig(sources=('gsm8k', 'math'), batch_size=128),
  optim=OptimConfig(learning_rate=1e-5, warmup_steps=5),
  train=TrainConfig(steps=100, dropout=0.0, eval_every=25, checkpoint_every=50),
)
