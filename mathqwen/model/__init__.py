"""The decoder, as functions of a nested dict of arrays.

For other folders to use; nothing is imported here, because most of it imports JAX:

  config       `ModelConfig`, and `PRESETS` of the published sizes
  qwen         `forward`, `prefill`, `decode_step`, `unembed`; for other layouts of the weights `block`, `embed`,
               `final_norm`, `cast`
  parameters   `init`, `abstract`, `logical_axes` of all weights
  lora         low-rank adapters on a frozen base: `join` of both, `init`, `trained`, `trained_axes`, `merged`
  adapted      `Adapted`, a matrix with its adapter; `OUTPUTS`, how many of its axes are outputs
  compute      `Compute`: dtype, recomputation, dropout, attention and placement of a pass
  cache        `KVCache`, keys and values of past tokens
  attention    `select` of the implementations of attention in training and prefill
  layers       the functions that a layer is made of; `Product`, a weight that multiplies by itself
  quantized    `Quantized`, a frozen weight in 8 or 4 bits
  frozen       the weights of a model as they are held, quantised or not
  placement    `Placement`, the null form of `hardware.sharding.MeshPlacement`
  stack        the loop over layers; `REMAT`, `group_size`

Only for `attention`: `splash`, the kernel for TPUs. Only for `layers`: `rotary`, frequencies and their scaling.
"""

__all__ = [
  'adapted',
  'attention',
  'cache',
  'compute',
  'config',
  'frozen',
  'layers',
  'lora',
  'parameters',
  'placement',
  'quantized',
  'qwen',
  'stack',
]
