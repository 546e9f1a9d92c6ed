"""Two models compared by their logits: `convert check`, and the check that ends every conversion."""

import functools

import jax
import numpy as np

from mathqwen.errors import UserError, report
from mathqwen.model import qwen
from mathqwen.model.config import ModelConfig
from mathqwen.storage.source import Source, open_source

# A prompt and an answer (GSM8K's first problem), LaTeX, and Chinese: between them they use many parts of a vocabulary.
SAMPLE = (
  'Natalia sold clips to 48 of her friends in April, and then half as many in May. How many did she sell altogether?',
  'She sold 48 / 2 = 24 clips in May, and 48 + 24 = 72 altogether.\n#### 72',
  'Find $x$ if $\\frac{x}{2} + 3 = 7$. We have $x = 8$, so the answer is $\\boxed{8}$. And 5! = 120.',
  '小明有3盒铅笔,每盒12支,他一共有多少支铅笔? 3×12=36(支)。',
)
POSITIONS = 64  # of each text of the sample, at most


def compare_models(a: str, b: str, tolerance: float | None = None) -> dict:
  """`compare_sources` of two MODELs, printed in one line.

  UserError: when a logit differs by more than `tolerance`, or one of them is not a model.
  """
  found = compare_sources(open_source(a), open_source(b))
  print(
    f'greatest logit difference {found["max_logit_difference"]:.3g} (logits have standard deviation '
    f'{found["logit_std"]:.3g}); KL divergence {found["kl_divergence"]:.3g} nats a position; the same greedy token at '
    f'{found["greedy_agreement"]:.1%} of {found["positions"]} positions, over the {found["vocabulary"]:,} ids of both'
  )
  # Not `>`: a difference of NaN must not pass.
  if tolerance is not None and not found['max_logit_difference'] <= tolerance:
    raise UserError(
      f'{a} and {b} differ by {found["max_logit_difference"]:.3g} in a logit, more than --tolerance {tolerance}'
    )
  return found


def check_written(model: Source, folder: str, dtype: str | None) -> dict:
  """`compare_sources` of a model, rounded to `dtype`, and what was written from it.

  UserError: when any bit of a logit differs. Both sides round in the same way, so none should.
  """
  report('comparing the two models on a small batch (--no-check leaves it out)')
  found = compare_sources(model, open_source(folder), dtype)
  if not found['max_logit_difference'] == 0:  # not `!= 0`: NaN must not pass
    raise UserError(
      f'what was written differs from {model.name} (greatest logit difference {found["max_logit_difference"]:.3g}): '
      'nothing is kept; is the disk or the memory at fault? Try again'
    )
  return found


def verdict_on(differences: dict | None) -> str:
  """What a conversion reports about its check; None: it was left out."""
  if differences is None:
    return 'not compared with its source'
  return f'the same logits as its source to the bit, at {differences["positions"]} positions'


def compare_sources(a: Source, b: Source, dtype: str | None = None, b_dtype: str | None = None) -> dict:
  """Compares the float32 logits of two models on a small batch. One model is in memory at a time, in its files' dtype.

  dtype, b_dtype: round the weights of `a`, of `b`, to it first. Returns

    max_logit_difference   over all positions and ids
    kl_divergence          of `b` from `a`, nats per position
    greedy_agreement       fraction of positions at which both have the same most likely id
    positions, vocabulary  how many were compared; only ids that both models have
    logit_std              standard deviation of the logits of `a`, to compare the difference with
  """
  vocab = min(a.config.vocab_size, b.config.vocab_size)
  positions = min(POSITIONS, a.config.longest, b.config.longest)
  tokens_BT, segments_BT = _sample(a, vocab, positions)
  is_text = segments_BT > 0
  a_logits = _sample_logits(a, tokens_BT, segments_BT, dtype)[is_text][:, :vocab]  # [positions, vocab]
  b_logits = _sample_logits(b, tokens_BT, segments_BT, b_dtype)[is_text][:, :vocab]
  a_log_probs, b_log_probs = _log_softmax(a_logits), _log_softmax(b_logits)
  return {
    'max_logit_difference': float(np.abs(a_logits - b_logits).max()),
    'kl_divergence': float(np.sum(np.exp(a_log_probs) * (a_log_probs - b_log_probs), axis=-1).mean()),
    'greedy_agreement': float(np.mean(a_logits.argmax(-1) == b_logits.argmax(-1))),
    'positions': len(a_logits),
    'vocabulary': vocab,
    'logit_std': float(a_logits.std()),
  }


def _sample(source: Source, vocab: int, positions: int) -> tuple[np.ndarray, np.ndarray]:
  """(tokens, segment ids) int32 [4, T] of the sample text, or of random ids where there is no tokenizer."""
  if source.tokenizer is None:
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, vocab, positions - i * positions // 8).tolist() for i in range(4)]  # unequal lengths
  else:
    rows = [ids[:positions] for ids in source.tokenizer.encode_batch(SAMPLE)]
  tokens_BT = np.zeros((len(rows), positions), np.int32)
  segments_BT = np.zeros((len(rows), positions), np.int32)
  for row, ids in enumerate(rows):
    tokens_BT[row, : len(ids)] = np.minimum(ids, vocab - 1)
    segments_BT[row, : len(ids)] = 1
  return tokens_BT, segments_BT


def _sample_logits(source: Source, tokens_BT: np.ndarray, segments_BT: np.ndarray, dtype: str | None) -> np.ndarray:
  """float32 [B, T, V]. The weights are freed on return."""
  params = source.read(None, dtype)
  return np.asarray(_forward(params, tokens_BT, segments_BT, cfg=source.config))


@functools.partial(jax.jit, static_argnames='cfg')
def _forward(params: dict, tokens_BT: jax.Array, segments_BT: jax.Array, *, cfg: ModelConfig) -> jax.Array:
  return qwen.unembed(params, qwen.forward(params, cfg, tokens_BT, segments_BT))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
  logits = np.float64(logits)
  return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
