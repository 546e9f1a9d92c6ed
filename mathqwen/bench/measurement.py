"""Speed of the training step and of decoding on this machine, compared with torch and transformers if asked."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from mathqwen.bench import sides, torch_side
from mathqwen.bench.turns import Elsewhere, Timing, take_turns, timed
from mathqwen.config import DataConfig, Experiment, TrainConfig
from mathqwen.errors import UserError
from mathqwen.hardware import chips
from mathqwen.hardware.flops import model_flops
from mathqwen.inference import generate
from mathqwen.model.config import ModelConfig

Sides = dict[str, Callable[[], Timing]]  # {name: a function that times itself}


def run(what: str, cfg: ModelConfig, *, batch: int, dtype: str, turns: int, torch: bool, **options) -> dict[str, Any]:
  """Measures 'train' or 'decode', prints a line for each side, and returns the JSON of `mathqwen bench`.

  turns: calls of each side that count. torch: measure torch as well.
  options: of train seq_len, loss_share, and dropout, attention, remat of `TrainConfig`; of decode prompt, new_tokens,
    long_tail.
  UserError: when a value is out of range, the model does not work out, or torch is missing.
  """
  for name, value in {'batch': batch, 'steps': turns}.items():
    if value < 1:
      raise UserError(f'--{name} is {value}: it must be at least 1')
  shape = dataclasses.asdict(cfg) | {'batch': batch, 'dtype': dtype, 'steps': turns} | options
  if what == 'train':
    tokens, measured = _train_sides(cfg, batch, dtype, torch, **options)
  else:
    tokens, measured = _decode_sides(cfg, batch, dtype, torch, **options)
  figures = take_turns(measured, turns, tokens)

  peak = chips.peak_flops(jax.devices()[0].device_kind, dtype)
  if what == 'train' and peak is not None:
    flops = model_flops(cfg, batch, shape['seq_len'])
    for side in figures.values():
      side['mfu'] = flops / side['step_seconds'] / peak

  _print_figures(figures, 'step' if what == 'train' else 'batch')
  result = figures['mathqwen'] | {'what': what, 'shape': shape}
  for name in figures.keys() - {'mathqwen'}:
    ratio = figures['mathqwen']['tokens_per_second'] / figures[name]['tokens_per_second']
    print(f'mathqwen over {name}: {ratio:.2f}')
    result |= {name: figures[name], 'ratio': ratio}
  return result


def _train_sides(
  cfg: ModelConfig, batch: int, dtype: str, torch: bool, *, seq_len: int, loss_share: float, **settings
) -> tuple[int, Sides]:
  """(tokens of a step, the sides)"""
  if not 0 < loss_share <= 1:
    raise UserError(f'--loss-share is {loss_share}: it must be above 0 and at most 1')
  experiment = Experiment(
    cfg,
    data=DataConfig(batch_size=batch, seq_len=seq_len),
    optim=sides.OPTIM,
    train=TrainConfig(steps=sides.STEPS, compute_dtype=dtype, **settings),
  )
  rows = sides.train_rows(cfg, batch, seq_len, loss_share)
  make_torch = functools.partial(torch_side.train_side, experiment, rows, _torch_device())
  return batch * seq_len, _sides(functools.partial(sides.train_side, experiment, rows), make_torch if torch else None)


def _decode_sides(
  cfg: ModelConfig, batch: int, dtype: str, torch: bool, *, prompt: int, new_tokens: int, long_tail: int
) -> tuple[int, Sides]:
  """(new tokens of a call, the sides). long_tail: how many answers of GSM8K's lengths; 0: `batch` equal ones."""
  if long_tail:
    if torch:
      raise UserError('--long-tail compares two ways of batching in mathqwen: leave out --torch')
    prompts = sides.decode_prompts(cfg, long_tail, prompt)
    lengths = sides.gsm8k_lengths(long_tail)
    generate.check(cfg, prompts.tolist(), sides.answer_request(cfg, lengths))
    return sum(lengths), sides.long_tail_sides(cfg, dtype, prompts, lengths, batch)

  prompts = sides.decode_prompts(cfg, batch, prompt)
  generate.check(cfg, prompts.tolist(), sides.answer_request(cfg, new_tokens))
  make_torch = functools.partial(torch_side.decode_side, cfg, dtype, prompts, new_tokens, _torch_device())
  make_ours = functools.partial(sides.decode_side, cfg, dtype, prompts, new_tokens)
  return batch * new_tokens, _sides(make_ours, make_torch if torch else None)


def _sides(make_ours: Callable, make_torch: Callable | None) -> Sides:
  # torch first: if it is missing, that shows before anything of ours is compiled.
  others = {'torch': Elsewhere(make_torch)} if make_torch else {}
  return {'mathqwen': functools.partial(timed, make_ours()), **others}


def _torch_device() -> str:
  return 'cuda' if jax.default_backend() == 'gpu' else 'cpu'


def _print_figures(figures: dict[str, dict[str, float]], call: str):
  for name, side in figures.items():
    line = (
      f'{name}: {side["tokens_per_second"]:,.1f} tokens/s, {side["step_seconds"]:.2f} s and '
      f'{side["cpu_seconds_per_step"]:.2f} CPU seconds a {call}, at most {side["peak_rss_bytes"] / 2**30:.1f} GiB'
    )
    if 'mfu' in side:
      line += f', MFU {side["mfu"]:.1%}'
    print(line)
