"""Hugging Face directories in and out.

layouts   where each weight stands in a file, one table a family     config    config.json <-> ModelConfig
files     safetensors, a tensor at a time                            reading   weights into their sharding
hub       names of the Hugging Face hub                              writing   whole directories, or nothing
"""

from mathqwen.hf.config import read_config, read_system_prompt
from mathqwen.hf.files import DTYPES
from mathqwen.hf.layouts import LAYOUTS
from mathqwen.hf.reading import Checkpoint, load_params
from mathqwen.hf.writing import check_target, save

__all__ = [
  'DTYPES',
  'LAYOUTS',
  'Checkpoint',
  'check_target',
  'load_params',
  'read_config',
  'read_system_prompt',
  'save',
]
