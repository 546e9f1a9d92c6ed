"""The sizes and switches that make one decoder a Qwen-1, Qwen1.5/2/2.5, Qwen3 or LLaMA."""

import dataclasses
import math

from mathqwen.errors import UserError


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Names are those of Hugging Face's `config.json`; letters are those of the einsums in `qwen.py`."""

  vocab_size: int  # V: rows of the embedding, padding rows included; never resized to the tokenizer
  hidden_size: int  # D
  intermediate_size: int  # F: width of one of the two up-projections
  num_hidden_layers: int  # L
  num_attention_heads: int  # N
  num_key_value_heads: int  # K: N / K query heads share one
  head_dim: int  # H: N * H need not be D (Qwen3)
  max_position_embeddings: int  # longest sequence the checkpoint was made for
  rope_theta: float = 10_000.0
  rms_norm_eps: float = 1e-6
  tie_word_embeddings: bool = False  # the head is the embedding
  qkv_bias: bool = True  # Qwen-1, 1.5, 2, 2.5
  qk_norm: bool = False  # Qwen3: RMSNorm over each head of q and k
  seq_length: int | None = None  # Qwen-1: length it was trained at, past which the next two act (not in training)
  use_dynamic_ntk: bool = False  # Qwen-1: a larger rotary base for longer sequences
  use_logn_attn: bool = False  # Qwen-1: queries further on are scaled up
  initializer_range: float = 0.02  # standard deviation of random weights

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value, number = getattr(self, field.name), not isinstance(getattr(self, field.name), bool)
      if field.type is int or (field.name == 'seq_length' and value is not None):
        ok, wanted = number and isinstance(value, int) and 0 < value < 2**31, 'a whole number of at least 1'
      elif field.type is float:
        ok, wanted = number and isinstance(value, int | float) and 0 < value < math.inf, 'a number above 0'
      else:
        ok, wanted = value is None or isinstance(value, bool), 'true or false'
      if not ok:
        raise UserError(f'model.{field.name} is {value!r}: it must be {wanted}')
    if self.num_attention_heads % self.num_key_value_heads:
      raise UserError(
        f'model.num_attention_heads {self.num_attention_heads} is not a multiple of '
        f'model.num_key_value_heads {self.num_key_value_heads}'
      )
    if self.seq_length is None and (self.use_dynamic_ntk or self.use_logn_attn):
      raise UserError('model.use_dynamic_ntk and model.use_logn_attn act past model.seq_length: set it')
    if self.head_dim % 2:
      raise UserError(f'model.head_dim {self.head_dim} is odd: rotary embeddings turn pairs; set an even one')


def _family(names, fields, rows, **common):
  return {
    name: ModelConfig(**common, **dict(zip(fields, row, strict=True))) for name, row in zip(names, rows, strict=True)
  }


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

# Published sizes, for planning and for random initialisation. A conversion reads the checkpoint's own config.json.
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
