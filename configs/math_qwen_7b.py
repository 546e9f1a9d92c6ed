"""MATH-QWEN-CHAT 7B: the recipe of the Qwen Technical Report (arXiv 2309.16609, sections 3.1.2 and 5.1) to the letter.

  mathqwen train math_qwen_7b --init Qwen-7B --workdir gs://BUCKET/math-qwen-7b

128 rows of 1,024 tokens, 50,000 steps, AdamW (0.9, 0.95, 1e-8), weight decay 0.1, clipping at 1.0, dropout 0.1, warmup
over 1,430 steps to 2e-5; bfloat16 compute on float32 masters. Those are the defaults of `mathqwen.config`; they stand
here so that the recipe can be read in one place. What follows the warmup the report does not say: cosine to 10%, as
in its pretraining. The paper's data are not published: these are the training splits of the benchmarks that have one.
"""

from mathqwen.config import DataConfig, Experiment, MeshConfig, OptimConfig, TrainConfig
from mathqwen.model.config import PRESETS

config = Experiment(
  model=PRESETS['Qwen-7B'],
  init='Qwen/Qwen-7B',
  data=DataConfig(sources=('gsm8k', 'math', 'math23k'), seq_len=1024, batch_size=128),
  optim=OptimConfig(
    learning_rate=2e-5,
    warmup_steps=1_430,
    schedule='cosine',
    final_ratio=0.1,
    beta1=0.9,
    beta2=0.95,
    eps=1e-8,
    weight_decay=0.1,
    clip_norm=1.0,
  ),
  mesh=MeshConfig(data=1, fsdp=-1, tensor=1),
  train=TrainConfig(steps=50_000, dropout=0.1, compute_dtype='bfloat16', remat='full'),
)
