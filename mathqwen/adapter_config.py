"""The settings train.adapter.*: what is trained, where that is not all weights. `config.py` puts them together."""

import dataclasses
import math

from mathqwen.settings import setting

MATRICES = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')  # of a layer, in the order of `targets`


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
  """Low-rank adapters (LoRA) on the matrices of the layers; everything else is frozen."""

  rank: int = setting(0, help='of the adapters; 0: none, all weights are trained', at_least=0)
  alpha: float = setting(16.0, help='the product of an adapter is multiplied by alpha / rank', above=0)
  dropout: float = setting(0.0, help='on what enters an adapter', at_least=0, below=1)
  targets: tuple[str, ...] = setting(
    MATRICES,
    help='the matrices that have one',
    choices=MATRICES,
    remedy='q_proj of PEFT is q here, up_proj is up, and so on; c_attn of Qwen-1 is q,k,v',
  )
  rank_stabilized: bool = setting(False, help='rsLoRA: alpha / sqrt(rank) instead of alpha / rank (arXiv 2312.03732)')
  dora: bool = setting(False, help='DoRA: the length of each row is trained, too (arXiv 2402.09353)')
  base: str = setting(
    'bfloat16',
    help='how the frozen weights are held; int8, int4 and nf4 (QLoRA) are for the matrices of the layers, and the rest '
    'is bfloat16',
    choices=('float32', 'bfloat16', 'int8', 'int4', 'nf4'),
  )

  def __post_init__(self):
    """The order in which a user names matrices changes nothing, and makes no other run."""
    if set(self.targets) <= set(MATRICES):  # any other name is refused where settings are checked
      object.__setattr__(self, 'targets', tuple(sorted(self.targets, key=MATRICES.index)))

  @property
  def base_dtype(self) -> str:
    """The dtype in which the frozen weights are read, before they are quantised."""
    return self.base if self.base in ('float32', 'bfloat16') else 'bfloat16'

  @property
  def scale(self) -> float:
    """By which the product of A and B is multiplied."""
    return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


NO_ADAPTER = AdapterConfig()
