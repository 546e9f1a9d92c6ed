"""`OptimConfig`: the settings optim.*. `config.py` puts them together."""

import dataclasses

from mathqwen.settings import setting

# Bytes of the two moments of a weight, by optimizer.
_MOMENT_BYTES = {'adamw': 8, 'adamw_bf16': 4, 'adamw_8bit': 2}


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """AdamW. The defaults are the recipe of the Qwen Technical Report, sections 3.1.2 and 5.1."""

  name: str = setting(
    'adamw',
    help='adamw keeps the two moments of a weight in float32, 8 bytes; adamw_bf16 in 4 and adamw_8bit in 2 bytes, '
    'with stochastic rounding',
    choices=tuple(_MOMENT_BYTES),
  )
  learning_rate: float = setting(2e-5, help='at its peak', above=0)
  warmup_steps: int = setting(1_430, help='steps over which the learning rate rises from 0 to its peak', at_least=0)
  schedule: str = setting('cosine', help='the learning rate after its peak', choices=('cosine', 'linear', 'constant'))
  final_ratio: float = setting(
    0.1, help='last learning rate, as a share of the peak (cosine and linear)', at_least=0, at_most=1
  )
  beta1: float = setting(0.9, help='decay of the mean of the gradients', at_least=0, below=1)
  beta2: float = setting(0.95, help='decay of the mean of their squares', at_least=0, below=1)
  eps: float = setting(1e-8, help='added to the root of the mean of squares', above=0)
  weight_decay: float = setting(0.1, help='decoupled; not applied to norms and biases', at_least=0)
  clip_norm: float = setting(1.0, help='largest global norm of the gradients; inf does not clip', above=0, finite=False)
  offload: bool = setting(
    False,
    help='whether the moments of adamw are in the memory of the host: the devices hold those of few layers at a time, '
    'and a step takes longer',
    changes_weights=False,
  )

  @property
  def moment_bytes(self) -> int:
    """Of the two moments of a weight."""
    return _MOMENT_BYTES[self.name]
