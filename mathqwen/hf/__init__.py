"""Hugging Face directories in and out.

layouts        names and shapes of weights in the files, one table per architecture
families       which layout a config.json means, and what its missing keys mean
config_json    config.json <-> ModelConfig
config_keys    all other keys: without effect, or refused by name
rope_json      the keys of rotary embeddings, in the forms of transformers 4 and 5
tensor_files   safetensors files, one tensor at a time
torch_files    pytorch_model.bin, likewise, without running what is in it
tensor_pickle  the part of such a file that says which tensors there are
tensor_directory    the tensors of a directory, whichever files they are in
adapters       LoRA adapters, merged into the weights as they are read
adapter_export   adapters that were trained here, as PEFT's files
weights        the protocol of what can be read weight by weight
reading        the weights of a directory, read into their sharding
export_plan    what an export will write
writing        writes it
new_directory  a directory that appears complete or not at all
"""

from mathqwen.hf.adapter_export import write_adapter
from mathqwen.hf.adapters import ADAPTER_CONFIG, Adapter, read_adapter
from mathqwen.hf.config_json import read_config, read_system_prompt
from mathqwen.hf.export_plan import ExportPlan, plan_export
from mathqwen.hf.layouts import LAYOUTS
from mathqwen.hf.new_directory import check_target, new_directory, together
from mathqwen.hf.reading import DirectoryWeights, load_params
from mathqwen.hf.tensor_directory import has_weights
from mathqwen.hf.tensor_files import DTYPES
from mathqwen.hf.weights import ArrayWeights, Path, Weights, set_weight, weight_at
from mathqwen.hf.writing import print_notes, save, write_export, write_prompt

__all__ = [
  'ADAPTER_CONFIG',
  'DTYPES',
  'LAYOUTS',
  'Adapter',
  'ArrayWeights',
  'DirectoryWeights',
  'ExportPlan',
  'Path',
  'Weights',
  'check_target',
  'has_weights',
  'load_params',
  'new_directory',
  'plan_export',
  'print_notes',
  'read_adapter',
  'read_config',
  'read_system_prompt',
  'save',
  'set_weight',
  'together',
  'weight_at',
  'write_adapter',
  'write_export',
  'write_prompt',
]
