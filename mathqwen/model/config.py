"""The sizes and switches that make one decoder a Qwen-1, Qwen1.5/2/2.5, Qwen3 or LLaMA."""

import dataclasses
import math

from mathqwen.errors import UserError
from mathqwen.settings import check_fields, setting

_SIZE = {'at_least': 1, 'at_most': 2**31 - 1}  # a dimension of an array, or a number of tokens
_NUMBER = {'at_least': 1e-6, 'at_most': 1e6}  # of rotary scaling: what float32 can compute with
_LAYERS = {'at_least': 1, 'at_most': 1000}  # there are lists of this length before any weight is looked at

# What each kind of rotary scaling reads, named as in transformers; all have a factor. The first ones must be given.
ROPE_FIELDS = {
  'default': (),
  'linear': ('factor',),
  'dynamic': ('factor',),
  'llama3': ('factor', 'original_max_position_embeddings', 'low_freq_factor', 'high_freq_factor'),
  'yarn': (
    'factor',
    'original_max_position_embeddings',
    'attention_factor',
    'mscale',
    'mscale_all_dim',
    'beta_fast',
    'beta_slow',
    'truncate',
  ),
  'longrope': ('factor', 'original_max_position_embeddings', 'short_factor', 'long_factor', 'attention_factor'),
}
_REQUIRED = {
  'llama3': ('original_max_position_embeddings', 'low_freq_factor', 'high_freq_factor'),
  'yarn': ('original_max_position_embeddings',),
  'longrope': ('original_max_position_embeddings', 'short_factor', 'long_factor'),
}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """How rotary embeddings reach past the length of pretraining: the keys of `rope_scaling` in config.json."""

  rope_type: str = setting('default', help='kind of rotary scaling; default scales nothing', choices=tuple(ROPE_FIELDS))
  factor: float = setting(1.0, help='how many times longer than in pretraining sequences may be', **_NUMBER)
  original_max_position_embeddings: int | None = setting(
    None, help='llama3, yarn, longrope: longest sequence of pretraining, in tokens', at_least=2, at_most=2**31 - 1
  )
  low_freq_factor: float | None = setting(
    None, help='llama3: waves of which fewer fit into the original length are slowed down by the factor', **_NUMBER
  )
  high_freq_factor: float | None = setting(
    None, help='llama3: waves of which more fit into the original length stay as they are', **_NUMBER
  )
  attention_factor: float | None = setting(
    None, help='yarn, longrope: scales rotated queries and keys; None computes it from the factor', **_NUMBER
  )
  mscale: float | None = setting(None, help='yarn: with the next, another way to compute attention_factor', **_NUMBER)
  mscale_all_dim: float | None = setting(None, help='yarn: see mscale', **_NUMBER)
  beta_fast: float = setting(32.0, help='yarn: waves that turn more often in the original length stay', **_NUMBER)
  beta_slow: float = setting(1.0, help='yarn: waves that turn less often are slowed down by the factor', **_NUMBER)
  truncate: bool = setting(True, help='yarn: round the dimensions at which these two begin and end')
  short_factor: tuple[float, ...] = setting(
    (), help='longrope: divides each frequency, in sequences up to the original length', **_NUMBER
  )
  long_factor: tuple[float, ...] = setting(
    (), help='longrope: divides each frequency, in sequences past the original length', **_NUMBER
  )

  def __post_init__(self):
    check_fields(self, 'model.rope_scaling.')
    for name, default in ((field.name, field.default) for field in dataclasses.fields(self)):
      is_set = getattr(self, name) != default
      if is_set and name not in ('rope_type', *ROPE_FIELDS[self.rope_type]):
        raise UserError(f'model.rope_scaling.{name} is set, and rope_type {self.rope_type} does not read it')
      if not is_set and name in _REQUIRED.get(self.rope_type, ()):
        raise UserError(f'model.rope_scaling.rope_type {self.rope_type} needs model.rope_scaling.{name}: set it')
    if self.rope_type == 'llama3' and self.low_freq_factor >= self.high_freq_factor:
      raise UserError(
        f'model.rope_scaling.low_freq_factor {self.low_freq_factor} is not below '
        f'model.rope_scaling.high_freq_factor {self.high_freq_factor}'
      )

  @property
  def follows_length(self) -> bool:
    """Whether frequencies depend on how long a sequence is."""
    return self.rope_type in ('dynamic', 'longrope')

  def __str__(self) -> str:
    """'yarn, factor 4.0, original_max_position_embeddings 32768'."""
    fields = ((name, getattr(self, name)) for name in ROPE_FIELDS[self.rope_type])
    defaults = {field.name: field.default for field in dataclasses.fields(self)}
    return ', '.join([self.rope_type, *(f'{name} {value}' for name, value in fields if value != defaults[name])])


NO_ROPE_SCALING = RopeScaling()


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The model's sizes and switches, named as in Hugging Face's config.json; letters: those of qwen.py."""

  vocab_size: int = setting(help='rows of the embedding (V), padding included; not resized to the tokenizer', **_SIZE)
  hidden_size: int = setting(help='width of the residual stream (D)', **_SIZE)
  intermediate_size: int = setting(help='width of the MLP (F): of its gate and of its up-projection', **_SIZE)
  num_hidden_layers: int = setting(help='layers (L)', **_LAYERS)
  num_attention_heads: int = setting(help='query heads (N)', **_SIZE)
  num_key_value_heads: int = setting(help='key and value heads (K); each serves N / K query heads', **_SIZE)
  head_dim: int = setting(help='width of a head (H); N * H need not be D (Qwen3)', **_SIZE)
  max_position_embeddings: int = setting(help='longest sequence that the model is made for, in tokens', **_SIZE)
  rope_theta: float = setting(10_000.0, help='base of the rotary embeddings', above=0)
  rope_scaling: RopeScaling = NO_ROPE_SCALING
  rms_norm_eps: float = setting(1e-6, help='added to the mean square in RMSNorm', above=0)
  tie_word_embeddings: bool = setting(False, help='use the embedding as output head')
  qkv_bias: bool = setting(True, help='biases on queries, keys and values: Qwen-1, 1.5, 2 and 2.5')
  o_bias: bool = setting(False, help='a bias on the output of attention: LLaMA and Qwen3 with `attention_bias`')
  qk_norm: bool = setting(False, help='RMSNorm over each head of queries and keys: Qwen3')
  seq_length: int | None = setting(
    None, help='Qwen-1: length it was trained at, beyond which the next two act (not in training)', **_SIZE
  )
  use_dynamic_ntk: bool = setting(False, help='Qwen-1: a larger rotary base for longer sequences')
  use_logn_attn: bool = setting(False, help='Qwen-1: scale up queries at later positions')
  initializer_range: float = setting(0.02, help='standard deviation of random weights', above=0)

  def __post_init__(self):
    check_fields(self, 'model.')
    if self.num_attention_heads % self.num_key_value_heads:
      raise UserError(
        f'model.num_attention_heads {self.num_attention_heads} is not a multiple of '
        f'model.num_key_value_heads {self.num_key_value_heads}'
      )
    if self.seq_length is None and (self.use_dynamic_ntk or self.use_logn_attn):
      raise UserError('model.use_dynamic_ntk and model.use_logn_attn act past model.seq_length: set it')
    if self.head_dim % 2:
      raise UserError(f'model.head_dim {self.head_dim} is odd: rotary embeddings rotate pairs; set an even one')
    if self.head_dim == 2 and (self.use_dynamic_ntk or self.rope_scaling.rope_type == 'dynamic'):
      raise UserError('model.head_dim 2 has a single frequency, which dynamic NTK cannot scale: set 4 or more')
    if self.use_dynamic_ntk and self.rope_scaling != NO_ROPE_SCALING:
      raise UserError('model.use_dynamic_ntk and model.rope_scaling both scale rotary embeddings: leave one out')
    if self.rope_theta <= 1 and self.rope_scaling.rope_type == 'yarn':
      raise UserError(f'model.rope_theta {self.rope_theta} leaves YaRN nothing to scale: set more than 1')
    for name in ('short_factor', 'long_factor'):
      factors = getattr(self.rope_scaling, name)
      if factors and len(factors) != self.head_dim // 2:
        raise UserError(
          f'model.rope_scaling.{name} has {len(factors)} numbers, and model.head_dim {self.head_dim} '
          f'has {self.head_dim // 2} frequencies: give one for each'
        )

  @property
  def longest(self) -> int:
    """Tokens that a sequence may have: `max_position_embeddings`, or what rotary scaling makes of it.

    As in vLLM: linear and dynamic count from max_position_embeddings, yarn from its original length; llama3 and
    longrope are published with a max_position_embeddings that is scaled already.
    """
    scaling = self.rope_scaling
    if scaling.rope_type in ('linear', 'dynamic'):
      scaled = self.max_position_embeddings * scaling.factor
    elif scaling.rope_type == 'yarn':
      scaled = scaling.original_max_position_embeddings * scaling.factor
    else:
      scaled = 0
    return max(self.max_position_embeddings, min(math.floor(scaled), 2**31 - 1))

  @property
  def limit(self) -> str:
    """`longest` for a message, with where it comes from."""
    limit = f'max_position_embeddings {self.max_position_embeddings}'
    if self.longest == self.max_position_embeddings:
      return limit
    return f'{limit}, with rotary scaling {self.longest}'


def _family(names, fields, rows, **common) -> dict[str, ModelConfig]:
  """{name: config}: one row of values for each name, in the order of `fields`; `common` holds for all of them."""
  presets = {}
  for name, row in zip(names, rows, strict=True):
    presets[name] = ModelConfig(**common, **dict(zip(fields, row, strict=True)))
  return presets


_SIZES = (
  'hidden_size',
  'intermediate_size',
  'num_hidden_layers',
  'num_attention_heads',
  'num_key_value_heads',
  'head_dim',
  'vocab_size',
  'tie_word_embeddings',
  'max_position_embeddings',
)

# Published sizes, for planning and for random weights. A checkpoint is read with the sizes in its own config.json.
PRESETS: dict[str, ModelConfig] = {
  **_family(
    ('Qwen-1_8B', 'Qwen-7B', 'Qwen-14B'),
    (*_SIZES, 'seq_length'),
    (
      (2048, 5504, 24, 16, 16, 128, 151936, False, 8192, 8192),
      (4096, 11008, 32, 32, 32, 128, 151936, False, 32768, 8192),
      (5120, 13696, 40, 40, 40, 128, 152064, False, 8192, 2048),
    ),
    use_dynamic_ntk=True,
    use_logn_attn=True,
  ),
  **_family(
    ('Qwen-72B',),
    (*_SIZES, 'seq_length'),
    ((8192, 24576, 80, 64, 64, 128, 152064, False, 32768, 32768),),
    rope_theta=1e6,
  ),
  **_family(
    ('Qwen2.5-0.5B', 'Qwen2.5-1.5B', 'Qwen2.5-3B', 'Qwen2.5-7B'),
    _SIZES,
    (
      (896, 4864, 24, 14, 2, 64, 151936, True, 32768),
      (1536, 8960, 28, 12, 2, 128, 151936, True, 131072),
      (2048, 11008, 36, 16, 2, 128, 151936, True, 32768),
      (3584, 18944, 28, 28, 4, 128, 152064, False, 131072),
    ),
    rope_theta=1e6,
  ),
  **_family(
    ('Qwen2.5-14B', 'Qwen2.5-32B', 'Qwen2.5-72B'),
    _SIZES,
    (
      (5120, 13824, 48, 40, 8, 128, 152064, False, 131072),
      (5120, 27648, 64, 40, 8, 128, 152064, False, 131072),
      (8192, 29568, 80, 64, 8, 128, 152064, False, 131072),
    ),
    rope_theta=1e6,
    rms_norm_eps=1e-5,
  ),
  **_family(
    ('Qwen3-0.6B', 'Qwen3-1.7B', 'Qwen3-4B', 'Qwen3-8B', 'Qwen3-14B', 'Qwen3-32B'),
    _SIZES,
    (
      (1024, 3072, 28, 16, 8, 128, 151936, True, 32768),
      (2048, 6144, 28, 16, 8, 128, 151936, True, 32768),
      (2560, 9728, 36, 32, 8, 128, 151936, True, 32768),
      (4096, 12288, 36, 32, 8, 128, 151936, False, 32768),
      (5120, 17408, 40, 40, 8, 128, 151936, False, 32768),
      (5120, 25600, 64, 64, 8, 128, 151936, False, 40960),
    ),
    rope_theta=1e6,
    qkv_bias=False,
    qk_norm=True,
  ),
  **_family(
    ('Llama-2-7b', 'Llama-2-13b', 'Llama-2-70b'),
    _SIZES,
    (
      (4096, 11008, 32, 32, 32, 128, 32000, False, 4096),
      (5120, 13824, 40, 40, 40, 128, 32000, False, 4096),
      (8192, 28672, 80, 64, 8, 128, 32000, False, 4096),
    ),
    rms_norm_eps=1e-5,
    qkv_bias=False,
  ),
}
