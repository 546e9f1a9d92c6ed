"""Speed of the training step and of decoding on this machine, with the like of it in torch and transformers beside.

Both sides take turns within the same minutes, and medians over the turns are told: a shared machine is fast and slow
by turns for both. Each has a process of its own, as its users run it: in one process one side's freed memory serves the
other, and on a CPU a part of torch's training step is the kernel's, which makes memory anew.
"""

import dataclasses
import functools
import multiprocessing
import signal
import statistics
import sys
import time

import jax
import numpy as np

from mathqwen.config import DataConfig, Experiment, OptimConfig, TrainConfig
from mathqwen.errors import UserError
from mathqwen.hardware import chips, sharding
from mathqwen.hardware.flops import model_flops
from mathqwen.inference import generate
from mathqwen.model import qwen
from mathqwen.model.config import ModelConfig
from mathqwen.observe.metrics import peak_rss_bytes
from mathqwen.training import optim
from mathqwen.training import step as step_lib

OPTIM = OptimConfig(warmup_steps=10)
STEPS = 1_000  # that the learning rate's schedule is made for
GSM8K_SHARES = (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)  # of its 1,319 test answers,
GSM8K_TOKENS = (34, 51, 61, 76, 88, 103, 117, 130, 147, 170, 202, 236, 312, 479)  # calculator marks left out


def train_rows(cfg: ModelConfig, batch: int, seq_len: int, loss_share: float) -> dict[str, np.ndarray]:
  """Rows of one segment each, `loss_share` of their positions with loss, spread at random."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, cfg.vocab_size, (batch, seq_len + 1)).astype(np.int32)
  weights = np.zeros((batch, seq_len), np.float32)
  for row in weights:
    row[rng.permutation(seq_len)[: max(1, round(loss_share * seq_len))]] = 1
  return {
    'tokens': tokens[:, :-1],
    'targets': tokens[:, 1:],
    'segment_ids': np.ones((batch, seq_len), np.int32),
    'positions': np.tile(np.arange(seq_len, dtype=np.int32), (batch, 1)),
    'loss_weights': weights,
  }


def train_side(experiment: Experiment, rows):
  """A function that takes one step of `step_lib.compile_step`'s and returns its loss."""
  cfg = experiment.model
  mesh = sharding.make_mesh(experiment.mesh)
  sharding.check(dict(mesh.shape), cfg, experiment.data.batch_size)
  tx = optim.optimizer(OPTIM, STEPS)
  compiled = step_lib.compile_step(mesh, cfg, experiment, tx)
  state = step_lib.init_state(mesh, cfg, tx, 0)
  rows = sharding.global_batch(rows, mesh)

  def step():
    nonlocal state
    state, metrics = compiled(state, rows)
    return float(metrics['loss_sum'] / metrics['loss_tokens'])

  return step


def torch_model(cfg: ModelConfig, device: str):
  """(torch, transformers' Qwen2 or Qwen3 of these sizes on `device`, random float32 weights, sdpa attention)."""
  try:
    import torch
    import transformers
  except ImportError as error:
    raise UserError(f"--torch needs {error.name}: install it with pip install -e '.[dev]'") from None
  if not cfg.qk_norm and not cfg.qkv_bias:
    name = 'Llama'
  else:
    name = 'Qwen3' if cfg.qk_norm else 'Qwen2'
  sizes = {
    field.name: getattr(cfg, field.name)
    for field in dataclasses.fields(cfg)
    if field.name not in ('qkv_bias', 'qk_norm', 'rope_theta')
  }
  hf = getattr(transformers, f'{name}Config')(**sizes, rope_theta=cfg.rope_theta)
  torch.manual_seed(0)
  model = getattr(transformers, f'{name}ForCausalLM')._from_config(hf, attn_implementation='sdpa')
  if device == 'cuda' and not torch.cuda.is_available():
    raise UserError('--torch: this torch has no CUDA, and JAX runs on a GPU: install a CUDA build of torch')
  return torch, model.to(device)


def torch_train_side(experiment: Experiment, rows, device: str):
  """The same step in torch: transformers' own loss, which takes every position through the head, on the same rows.

  float32 weights as on our side; bfloat16 compute is torch's autocast.
  """
  torch, model = torch_model(experiment.model, device)
  dtype = getattr(torch, experiment.train.compute_dtype)
  model.train()
  decayed = [p for p in model.parameters() if p.ndim > 1]
  others = [p for p in model.parameters() if p.ndim == 1]
  groups = [{'params': decayed, 'weight_decay': OPTIM.weight_decay}, {'params': others, 'weight_decay': 0.0}]
  adamw = torch.optim.AdamW(groups, lr=OPTIM.learning_rate, betas=(OPTIM.beta1, OPTIM.beta2), eps=OPTIM.eps)
  ids = torch.from_numpy(rows['tokens'].astype(np.int64)).to(device)
  targets = torch.from_numpy(np.where(rows['loss_weights'] > 0, rows['targets'], -100).astype(np.int64)).to(device)

  def step():
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
      loss = model(input_ids=ids, shift_labels=targets, labels=targets, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIM.clip_norm)
    adamw.step()
    adamw.zero_grad()
    return float(loss.detach())

  return step


def decode_prompts(cfg: ModelConfig, batch: int, prompt: int) -> np.ndarray:
  return np.random.default_rng(0).integers(0, cfg.vocab_size, (batch, prompt)).astype(np.int32)


def decode_side(cfg: ModelConfig, dtype: str, prompts, new_tokens: int | list[int], batch: int | None = None):
  """A function that decodes greedily, all answers or `batch` at a time, and returns them."""
  batch = batch or len(prompts)
  make = lambda key: jax.tree.map(lambda x: x.astype(dtype), qwen.init(key, cfg))
  params = jax.jit(make)(jax.random.key(0))
  if jax.default_backend() == 'cpu':
    params = qwen.for_cpu(params, cfg, batch)
  return functools.partial(
    generate.generate,
    params,
    cfg,
    prompts=prompts.tolist(),
    max_new_tokens=new_tokens,
    vocab_size=cfg.vocab_size,
    stop_ids=(-1,),  # none: every answer is of `new_tokens`
    batch_size=batch,
    dtype=dtype,
  )


def gsm8k_lengths(n: int) -> list[int]:
  """Tokens of `n` answers, drawn from the lengths of GSM8K's test answers in this package's tokenizer."""
  return np.interp(np.random.default_rng(1).random(n), GSM8K_SHARES, GSM8K_TOKENS).astype(int).tolist()


def long_tail_sides(cfg: ModelConfig, dtype: str, prompts, lengths: list[int], batch: int) -> dict:
  """Decoding with slots that are filled again, and in batches that each wait for their longest answer."""
  decode = decode_side(cfg, dtype, prompts, lengths, batch)
  groups = [slice(start, start + batch) for start in range(0, len(lengths), batch)]
  static = lambda: [decode(prompts=prompts[group].tolist(), max_new_tokens=lengths[group]) for group in groups]
  return {name: functools.partial(timed, run) for name, run in {'mathqwen': decode, 'static': static}.items()}


def torch_decode_side(cfg: ModelConfig, dtype: str, prompts, new_tokens: int, device: str):
  torch, model = torch_model(cfg, device)
  model.eval().to(getattr(torch, dtype))
  model.generation_config.eos_token_id = None
  model.generation_config.pad_token_id = 0
  ids = torch.from_numpy(prompts.astype(np.int64)).to(device)

  def run():
    with torch.no_grad():
      return model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new_tokens)

  return run


def timed(run) -> tuple[float, float, int]:
  """(seconds, CPU seconds of this process, the most bytes that it has held) of a call."""
  begun, cpu = time.perf_counter(), time.process_time()
  run()
  return time.perf_counter() - begun, time.process_time() - cpu, peak_rss_bytes()


class Elsewhere:
  """`timed` calls of what `make()` returns, in a process of its own."""

  def __init__(self, make):
    context = multiprocessing.get_context('spawn')
    self.pipe, its = context.Pipe()
    self.process = context.Process(target=_serve, args=(its, make), daemon=True)
    self.process.start()
    its.close()
    self._hear()

  def __call__(self):
    return self._hear('again')

  def _hear(self, *asked):
    try:
      for word in asked:
        self.pipe.send(word)
      said = self.pipe.recv()
    except (EOFError, OSError):  # the other end is closed
      self.process.join()
      raise UserError(
        f'the process measured beside this one ended with exit code {self.process.exitcode} (-9: killed, perhaps for '
        'memory): what it said stands above'
      ) from None
    if isinstance(said, UserError):
      raise said
    return said


def _serve(pipe, make):
  """The other end of `Elsewhere`, until it is closed."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the process that asks, and so this one
  try:
    run = make()
  except UserError as error:
    return pipe.send(error)
  pipe.send('ready')
  try:
    while pipe.recv():
      pipe.send(timed(run))
  except EOFError:
    pass  # the process that asks has ended


def measure(sides: dict, turns: int, tokens: int) -> dict[str, dict[str, float]]:
  """Medians over `turns` calls of each side's `timed`, taken by turns after one call of each that is not counted."""
  taken = {name: [] for name in sides}
  for turn in range(turns + 1):
    for name, run in sides.items():
      seconds, cpu, peak = run()
      if turn:
        taken[name].append((seconds, cpu, peak))
        print(f'{name} {turn}/{turns}: {seconds:.2f} s, {tokens / seconds:,.0f} tokens/s', file=sys.stderr)
  found = {}
  for name, rows in taken.items():
    seconds, cpu, _ = (statistics.median(column) for column in zip(*rows, strict=True))
    found[name] = {
      'tokens_per_second': tokens / seconds,
      'step_seconds': seconds,
      'cpu_seconds_per_step': cpu,
      'peak_rss_bytes': rows[-1][2],
    }
  return found


def run(what: str, cfg: ModelConfig, *, batch: int, dtype: str, turns: int, torch: bool, **options) -> dict:
  """Measures 'train' or 'decode', prints a line, and returns its figures, its shape and, with `torch`, the others'.

  options of train: seq_len, loss_share, and dropout, attention, remat of `TrainConfig`; of decode: prompt, new_tokens,
  long_tail.
  """
  for name, value in {'batch': batch, 'steps': turns}.items():
    if value < 1:
      raise UserError(f'--{name} is {value}: it must be at least 1')
  shape = dataclasses.asdict(cfg) | {'batch': batch, 'dtype': dtype, 'steps': turns} | options
  if what == 'train':
    seq_len, loss_share = options.pop('seq_len'), options.pop('loss_share')
    if not 0 < loss_share <= 1:
      raise UserError(f'--loss-share is {loss_share}: it must be above 0 and at most 1')
    settings = TrainConfig(steps=STEPS, compute_dtype=dtype, **options)
    experiment = Experiment(cfg, data=DataConfig(batch_size=batch, seq_len=seq_len), optim=OPTIM, train=settings)
    rows = train_rows(cfg, batch, seq_len, loss_share)
    make, make_torch = (functools.partial(side, experiment, rows) for side in (train_side, torch_train_side))
    tokens = batch * seq_len
  else:
    prompts, new_tokens = decode_prompts(cfg, options['long_tail'] or batch, options['prompt']), options['new_tokens']
    if options['long_tail']:
      if torch:
        raise UserError('--long-tail compares with batches of our own: leave out --torch')
      new_tokens = gsm8k_lengths(options['long_tail'])
    generate.check(cfg, prompts.tolist(), new_tokens, 0)
    make, make_torch = (
      functools.partial(side, cfg, dtype, prompts, new_tokens) for side in (decode_side, torch_decode_side)
    )
    tokens = sum(new_tokens) if options['long_tail'] else batch * new_tokens
  if options.get('long_tail'):
    sides = long_tail_sides(cfg, dtype, prompts, new_tokens, batch)
  else:
    device = 'cuda' if jax.default_backend() == 'gpu' else 'cpu'
    # First: what is missing shows before anything is compiled.
    others = {'torch': Elsewhere(functools.partial(make_torch, device))} if torch else {}
    sides = {'mathqwen': functools.partial(timed, make()), **others}
  found = measure(sides, turns, tokens)
  peak = chips.peak_flops(jax.devices()[0].device_kind, dtype)
  if what == 'train' and peak is not None:
    flops = model_flops(cfg, batch, shape['seq_len'])
    for figures in found.values():
      figures['mfu'] = flops / figures['step_seconds'] / peak
  result = found['mathqwen'] | {'what': what, 'shape': shape}
  for name, figures in found.items():
    print(
      f'{name}: {figures["tokens_per_second"]:,.1f} tokens/s, {figures["step_seconds"]:.2f} s and '
      f'{figures["cpu_seconds_per_step"]:.2f} CPU seconds a {"step" if what == "train" else "batch"}, '
      f'at most {figures["peak_rss_bytes"] / 2**30:.1f} GiB'
      + (f', MFU {figures["mfu"]:.1%}' if 'mfu' in figures else '')
    )
  for name in found.keys() - {'mathqwen'}:
    ratio = found['mathqwen']['tokens_per_second'] / found[name]['tokens_per_second']
    print(f'mathqwen over {name}: {ratio:.2f}')
    result |= {name: found[name], 'ratio': ratio}
  return result
