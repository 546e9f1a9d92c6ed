"""The other side of a measurement: the same training step and decoding in torch and transformers."""

import dataclasses
from collections.abc import Callable

import numpy as np

from mathqwen.bench import sides
from mathqwen.config import Experiment
from mathqwen.errors import UserError
from mathqwen.model.config import ModelConfig


def torch_model(cfg: ModelConfig, device: str):
  """(the module torch, transformers' model of these sizes on `device`: random float32 weights, sdpa attention).

  UserError: when torch or transformers is not installed, or `device` is 'cuda' and this torch has none.
  """
  try:
    import torch
    import transformers
  except ImportError as error:
    raise UserError(f"--torch needs {error.name}: install it with pip install -e '.[dev]'") from None
  if cfg.qk_norm:
    name = 'Qwen3'
  else:
    name = 'Qwen2' if cfg.qkv_bias and not cfg.o_bias else 'Llama'
  sizes = {
    field.name: getattr(cfg, field.name)
    for field in dataclasses.fields(cfg)
    if field.name not in ('qkv_bias', 'o_bias', 'qk_norm', 'rope_theta', 'rope_scaling')
  }
  hf = getattr(transformers, f'{name}Config')(**sizes, rope_theta=cfg.rope_theta, attention_bias=cfg.o_bias)
  torch.manual_seed(0)
  model = getattr(transformers, f'{name}ForCausalLM')._from_config(hf, attn_implementation='sdpa')
  if device == 'cuda' and not torch.cuda.is_available():
    raise UserError('--torch: this torch has no CUDA, and JAX runs on a GPU: install a CUDA build of torch')
  return torch, model.to(device)


def train_side(experiment: Experiment, rows: dict[str, np.ndarray], device: str) -> Callable[[], float]:
  """`sides.train_side` in torch, on the same rows. transformers' own loss takes every position through the head.

  float32 weights as on our side; bfloat16 compute is torch's autocast. device: 'cpu' or 'cuda'.
  """
  torch, model = torch_model(experiment.model, device)
  dtype = getattr(torch, experiment.train.compute_dtype)
  model.train()
  decayed = [p for p in model.parameters() if p.ndim > 1]
  others = [p for p in model.parameters() if p.ndim == 1]
  optim = sides.OPTIM
  groups = [{'params': decayed, 'weight_decay': optim.weight_decay}, {'params': others, 'weight_decay': 0.0}]
  adamw = torch.optim.AdamW(groups, lr=optim.learning_rate, betas=(optim.beta1, optim.beta2), eps=optim.eps)
  ids = torch.from_numpy(rows['tokens'].astype(np.int64)).to(device)
  targets = torch.from_numpy(np.where(rows['loss_weights'] > 0, rows['targets'], -100).astype(np.int64)).to(device)

  def step():
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
      loss = model(input_ids=ids, shift_labels=targets, labels=targets, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm)
    adamw.step()
    adamw.zero_grad()
    return float(loss.detach())

  return step


def decode_side(cfg: ModelConfig, dtype: str, prompts: np.ndarray, new_tokens: int, device: str) -> Callable:
  """A function that decodes `new_tokens` for each prompt greedily; it returns ids, [batch, prompt + new_tokens]."""
  torch, model = torch_model(cfg, device)
  model.eval().to(getattr(torch, dtype))
  model.generation_config.eos_token_id = None  # every answer has `new_tokens`
  model.generation_config.pad_token_id = 0
  ids = torch.from_numpy(prompts.astype(np.int64)).to(device)

  def run():
    with torch.no_grad():
      return model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new_tokens)

  return run
