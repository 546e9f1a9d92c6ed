"""MATH-QWEN-CHAT 7B: the recipe of the Qwen Technical Report (arXiv 2309.16609, sections 3.1.2 and 5.1) to the letter.

mathqwen data prepare gsm8k math23k
mathqwen data prepare math --data-dir DIR
mathqwen train math_qwen_7b --init Qwen/Qwen-7B --workdir gs://BUCKET/math-qwen-7b --distributed

128 rows of 1,024 tokens, 50,000 steps, AdamW (0.9, 0.95, 1e-8), weight decay 0.1, clipping at 1.0, dropout 0.1, warmup
over 1,430 steps to 2e-5; bfloat16 compute on float32 master weights. These are the defaults of `mathqwen.config`,
written out so that the whole recipe can be read here. The report does not say what follows the warmup: we take a cosine
to 10%, as in its pretraining. Its data are not published: we take the training splits of the benchmarks that have one.
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
