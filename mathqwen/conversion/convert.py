"""Hugging Face directories to checkpoints of ours and back, a weight at a time, and the comparison of two models."""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from mathqwen import hf
from mathqwen.config import Experiment
from mathqwen.conversion import card
from mathqwen.errors import UserError
from mathqwen.hf import layouts, writing
from mathqwen.model import qwen
from mathqwen.observe.metrics import peak_rss_bytes
from mathqwen.storage import checkpoint
from mathqwen.storage.source import Source, open_source

SAMPLE = (
  'Natalia sold clips to 48 of her friends in April, and then half as many in May. How many did she sell altogether?',
  'She sold 48 / 2 = 24 clips in May, and 48 + 24 = 72 altogether.\n#### 72',
  'Find $x$ if $\\frac{x}{2} + 3 = 7$. We have $x = 8$, so the answer is $\\boxed{8}$. And 5! = 120.',
  '小明有3盒铅笔,每盒12支,他一共有多少支铅笔? 3×12=36(支)。',
)
POSITIONS = 64  # of each text of the sample


def from_hf(source: str, target: str, check: bool = True) -> dict:
  """Writes `target`, a checkpoint directory of ours, from a Hugging Face directory, each weight in its own dtype."""
  writing.check_target(target)
  if '://' in str(target):
    raise UserError(f'{target}: from-hf writes to a local disk')
  model = open_source(source)
  if not isinstance(model.weights, hf.Checkpoint):
    raise UserError(f'{source} is a checkpoint of ours already: give a Hugging Face directory')
  cfg = model.config
  experiment = Experiment(cfg, init=model.name)
  experiment = dataclasses.replace(
    experiment, data=dataclasses.replace(experiment.data, system_prompt=model.system_prompt)
  )
  paths = model.weights.paths()
  shapes = qwen.abstract(cfg)
  size = sum(writing.at(shapes, path).size * model.weights.dtype(path).itemsize for path in paths)
  with writing.whole(target, size) as folder:
    checkpoint.write_model(folder, model.weights, paths, experiment, model.tokenizer)
    checked = _check(model, str(folder), None) if check else None
  print(f'{target}: a checkpoint of ours, {size / 2**30:.2f} GiB{_said(checked)}')
  return {'out': target, 'bytes': size, 'check': checked, 'peak_rss_bytes': peak_rss_bytes()}


def to_hf(
  source: str,
  target: str,
  layout: str | None = None,
  dtype: str | None = None,
  scores: list[str] | None = None,
  check: bool = True,
) -> dict:
  """Writes `target`, a Hugging Face directory, from a MODEL of either kind.

  dtype: by default bfloat16 for a run, whose masters are float32, and otherwise that of the files.
  """
  writing.check_target(target)
  model = open_source(source)
  layout = layouts.choose(model.config, layout)
  if dtype is None and model.step:
    dtype = 'bfloat16'
  checked = None

  def verify(folder):
    nonlocal checked
    checked = _check(model, folder, dtype)

  text = card.model_card(model, layout, dtype, scores or [])
  several = jax.process_count() > 1
  hf.save(
    target,
    model.weights,
    model.config,
    model.tokenizer,
    dtype,
    layout,
    text,
    model.system_prompt,
    verify if check and not several else None,
  )
  if jax.process_index() == 0:
    said = '; written by several hosts: compare it with mathqwen convert check' if several and check else _said(checked)
    print(f'{target}: a Hugging Face directory, layout {layout}, {dtype or "dtypes as stored"}{said}')
  return {'out': target, 'layout': layout, 'dtype': dtype, 'check': checked, 'peak_rss_bytes': peak_rss_bytes()}


def _check(model: Source, folder: str, dtype: str | None) -> dict:
  """Compares `model`, rounded to `dtype`, with what was written: the same weights give the same logits to the bit."""
  print('comparing the two models on a small batch (--no-check leaves it out)', file=sys.stderr)
  again = open_source(folder)
  found = compare(model, again, dtype)
  again.weights.close()
  if not found['max_logit_difference'] == 0:
    raise UserError(
      f'what was written differs from {model.name} (greatest logit difference {found["max_logit_difference"]:.3g}): '
      'nothing is kept; is the disk or the memory at fault? Try again'
    )
  return found


def _said(found: dict | None) -> str:
  if found is None:
    return '; not compared with its source'
  return f'; the same logits as its source to the bit, at {found["positions"]} positions'


def compare_models(a: str, b: str, tolerance: float | None = None) -> dict:
  """`compare` of two MODELs, printed. UserError when a logit differs by more than `tolerance`."""
  found = compare(open_source(a), open_source(b))
  print(
    f'greatest logit difference {found["max_logit_difference"]:.3g} (logits have standard deviation '
    f'{found["logit_std"]:.3g}); KL divergence {found["kl_divergence"]:.3g} nats a position; the same greedy token at '
    f'{found["greedy_agreement"]:.1%} of {found["positions"]} positions, over the {found["vocabulary"]:,} ids of both'
  )
  if tolerance is not None and not found['max_logit_difference'] <= tolerance:
    raise UserError(
      f'{a} and {b} differ by {found["max_logit_difference"]:.3g} in a logit, more than --tolerance {tolerance}'
    )
  return found


def compare(a: Source, b: Source, dtype: str | None = None) -> dict:
  """Logits of two models on a small batch, in float32: one model is in memory at a time, in the dtype of its files.

  dtype: round the weights of `a` to it first. Returns max_logit_difference, kl_divergence (of `b` from `a`, nats a
  position), greedy_agreement (a fraction), positions, vocabulary (ids that both have) and logit_std.
  """
  vocab = min(a.config.vocab_size, b.config.vocab_size)
  positions = min(POSITIONS, a.config.max_position_embeddings, b.config.max_position_embeddings)
  tokens_BT, segments_BT = _sample(a, vocab, positions)
  ours, theirs = (
    _logits(source, tokens_BT, segments_BT, to)[segments_BT > 0][:, :vocab] for source, to in ((a, dtype), (b, None))
  )
  log_p, log_q = (x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in map(np.float64, (ours, theirs)))
  return {
    'max_logit_difference': float(np.abs(ours - theirs).max()),
    'kl_divergence': float(np.sum(np.exp(log_p) * (log_p - log_q), axis=-1).mean()),
    'greedy_agreement': float(np.mean(ours.argmax(-1) == theirs.argmax(-1))),
    'positions': len(ours),
    'vocabulary': vocab,
    'logit_std': float(ours.std()),
  }


def _sample(source: Source, vocab: int, positions: int):
  """(tokens, segment ids) int32 [4, T] of the sample text, or of random ids where there is no tokenizer."""
  if source.tokenizer is None:
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, vocab, positions - i * positions // 8).tolist() for i in range(4)]
  else:
    rows = [ids[:positions] for ids in source.tokenizer.encode_batch(SAMPLE)]
  tokens_BT, segments_BT = (np.zeros((len(rows), positions), np.int32) for _ in range(2))
  for row, ids in enumerate(rows):
    tokens_BT[row, : len(ids)] = np.minimum(ids, vocab - 1)
    segments_BT[row, : len(ids)] = 1
  return tokens_BT, segments_BT


def _logits(source: Source, tokens_BT, segments_BT, dtype) -> np.ndarray:
  params = source.read(None, dtype)
  logits = jax.jit(functools.partial(_forward, cfg=source.config))(params, tokens_BT, segments_BT)
  return np.asarray(logits)


def _forward(params, tokens_BT, segments_BT, *, cfg):
  return qwen.unembed(params, cfg, qwen.hidden(params, cfg, tokens_BT, segments_BT, dtype=jnp.float32))
