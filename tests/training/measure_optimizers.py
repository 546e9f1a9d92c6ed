"""AdamW with moments in 16 and 8 bits beside float32 moments: the loss over 300 steps on GSM8K, equal in all else.

python tests/training/measure_optimizers.py gsm8k/train.jsonl [STEPS]     ends with status 1 if one is 1% off
"""

import json
import pathlib
import sys
import tempfile

import mathqwen
from mathqwen.config import DataConfig, Experiment, OptimConfig, TrainConfig
from mathqwen.model.config import ModelConfig
from mathqwen.training import optim

STEPS = 300
WINDOW = 50  # steps; losses of single steps are means of few tokens
ALLOWED = 0.01  # of the loss of float32 moments, in each window


def experiment(train: str, steps: int, name: str) -> Experiment:
  """A model of 0.7 million parameters; beta2 is that of torch, with which the second moment moves least in a step."""
  return Experiment(
    model=ModelConfig(
      vocab_size=1024,
      hidden_size=128,
      intermediate_size=384,
      num_hidden_layers=3,
      num_attention_heads=4,
      num_key_value_heads=2,
      head_dim=32,
      max_position_embeddings=512,
      tie_word_embeddings=True,
    ),
    data=DataConfig(sources=(train,), seq_len=512, batch_size=4),
    optim=OptimConfig(name=name, learning_rate=1e-3, beta2=0.999, warmup_steps=20),
    train=TrainConfig(steps=steps, compute_dtype='float32', remat='none', log_every=1, eval_every=steps),
  )


def losses(train: str, steps: int, name: str) -> list[float]:
  """The training loss of each window of `WINDOW` steps."""
  with tempfile.TemporaryDirectory() as folder:
    mathqwen.train(experiment(train, steps, name), pathlib.Path(folder) / 'run')
    lines = map(json.loads, (pathlib.Path(folder) / 'run' / 'metrics.jsonl').read_text().splitlines())
    found = [line['loss'] for line in lines if 'loss' in line]
  return [sum(found[i : i + WINDOW]) / WINDOW for i in range(0, steps, WINDOW)]


def main() -> int:
  """Prints a line for each optimizer. Returns the exit status."""
  train = sys.argv[1]
  steps = int(sys.argv[2]) if len(sys.argv) > 2 else STEPS
  found = {name: losses(train, steps, name) for name in optim.MOMENTS}
  worst = 0.0
  for name, windows in found.items():
    apart = max(abs(a / b - 1) for a, b in zip(windows, found['adamw'], strict=True))
    worst = max(worst, apart)
    print(f'{name}: loss {", ".join(f"{loss:.4f}" for loss in windows)}; at most {apart:.2%} from adamw')
  return int(worst > ALLOWED)


if __name__ == '__main__':
  sys.exit(main())
