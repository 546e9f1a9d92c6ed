"""The sizes and switches that make one decoder a Qwen-1, Qwen1.5/2/2.5, Qwen3 or LLaMA."""

import dataclasses

from mathqwen.errors import UserError
from mathqwen.settings import check_fields, setting

_SIZE = {'at_least': 1, 'at_most': 2**31 - 1}  # a dimension of an array, or a number of layers


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The model's sizes and switches, named as in Hugging Face's config.json; letters: those of qwen.py."""

  vocab_size: int = setting(help='rows of the embedding (V), padding included; not resized to the tokenizer', **_SIZE)
  hidden_size: int = setting(help='width of the residual stream (D)', **_SIZE)
  intermediate_size: int = setting(help='width of the MLP (F): of its gate and of its up-projection', **_SIZE)
  num_hidden_layers: int = setting(help='layers (L)', **_SIZE)
  num_attention_heads: int = setting(help='query heads (N)', **_SIZE)
  num_key_value_heads: int = setting(help='key and value heads (K); each serves N / K query heads', **_SIZE)
  head_dim: int = setting(help='width of a head (H); N * H need not be D (Qwen3)', **_SIZE)
  max_position_embeddings: int = setting(help='longest sequence that the model is made for, in tokens', **_SIZE)
  rope_theta: float = setting(10_000.0, help='base of the rotary embeddings', above=0)
  rms_norm_eps: float = setting(1e-6, help='added to the mean square in RMSNorm', above=0)
  tie_word_embeddings: bool = setting(False, help='use the embedding as output head')
  qkv_bias: bool = setting(True, help='biases on queries, keys and values: Qwen-1, 1.5, 2 and 2.5')
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
