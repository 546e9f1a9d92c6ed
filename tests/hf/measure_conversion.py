"""Time of conversions, beside reading and writing the same bytes with safetensors in the same run.

python tests/hf/measure_conversion.py [GIGABYTES]
"""

import gc
import pathlib
import shutil
import statistics
import sys
import tempfile
import time

import jax
import ml_dtypes
import numpy as np
import safetensors.numpy

from mathqwen import hf
from mathqwen.conversion.from_hf import convert_from_hf
from mathqwen.conversion.to_hf import convert_to_hf
from mathqwen.model import parameters
from mathqwen.model.config import ModelConfig


def config(gigabytes: float) -> ModelConfig:
  """About so many GB in bfloat16, in layers of a 1.5B model's width."""
  sizes = {'vocab_size': 32_000, 'hidden_size': 1536, 'intermediate_size': 4480, 'num_attention_heads': 12}
  sizes |= {'num_key_value_heads': 2, 'head_dim': 128, 'max_position_embeddings': 4096, 'tie_word_embeddings': True}
  one = lambda layers: sum(
    x.size for x in jax.tree.leaves(parameters.abstract(ModelConfig(num_hidden_layers=layers, **sizes)))
  )
  return ModelConfig(num_hidden_layers=max(1, round((gigabytes * 1e9 / 2 - one(1)) / (one(2) - one(1)))), **sizes)


class RandomWeights(hf.Weights):
  """Finite bfloat16 weights, made when read."""

  def __init__(self, cfg):
    self._shapes, self._rng = parameters.abstract(cfg), np.random.default_rng(0)

  def dtype(self, path):
    return np.dtype(ml_dtypes.bfloat16)

  def read(self, path):
    shape = hf.weight_at(self._shapes, path).shape
    return (self._rng.standard_normal(shape, np.float32) * 0.02).astype(ml_dtypes.bfloat16)


def timed(work) -> float:
  gc.collect()
  started = time.perf_counter()
  work()
  return time.perf_counter() - started


def main(gigabytes: float, rounds: int = 3):
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    cfg = config(gigabytes)
    hf.save(str(folder / 'hf'), RandomWeights(cfg), cfg, None)
    size = (folder / 'hf' / 'model.safetensors').stat().st_size

    def copy():
      safetensors.numpy.save_file(
        safetensors.numpy.load_file(folder / 'hf' / 'model.safetensors'), folder / 'copy.safetensors'
      )

    times = {'safetensors': [], 'from-hf': [], 'to-hf': []}
    for _ in range(rounds):
      for name in ('ours', 'out'):
        shutil.rmtree(folder / name, ignore_errors=True)
      times['from-hf'].append(timed(lambda: convert_from_hf(str(folder / 'hf'), str(folder / 'ours'), compare=False)))
      times['to-hf'].append(timed(lambda: convert_to_hf(str(folder / 'ours'), str(folder / 'out'), compare=False)))
      times['safetensors'].append(timed(copy))
    print(f'{size / 1e9:.2f} GB')
    for name, taken in times.items():
      ratios = [t / base for t, base in zip(taken, times['safetensors'], strict=True)]
      print(
        f'{name}: {statistics.median(taken):.2f} s, {statistics.median(ratios):.2f} of safetensors reading and writing'
      )


if __name__ == '__main__':
  main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0)
