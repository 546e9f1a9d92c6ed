"""The loss of pairs: beside a slow oracle, beside TRL, in any packing."""

import contextlib
import functools
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mathqwen.data import pairs
from mathqwen.training import dpo, loss

V, D = 11, 6
BETA = 0.3


def pairs_of(count, longest=9, seed=0):
  """(ids, mask) of chosen and rejected answers in turn, of unequal lengths; a question of two ids before both."""
  rng = np.random.default_rng(seed)
  found = []
  for number in range(count):
    question = [number % V, *rng.integers(0, V, 2)]
    for _ in range(2):
      answer = rng.integers(0, V, rng.integers(1, longest - 3))
      ids = np.array([*question, *answer, 7], np.int32)  # 7: as the end of a turn, without loss
      mask = np.array([0] * 3 + [1] * len(answer) + [0], np.uint8)
      found.append((ids, mask))
  return found


def tables(seed=0):
  """Two models of one token: a table of x and a head each, for the policy and for the reference."""
  rng = np.random.default_rng(seed)
  return [
    (rng.standard_normal((V, D)).astype(np.float32), rng.standard_normal((V, D)).astype(np.float32)) for _ in '12'
  ]


def rows_of(examples, rows=8, one_pair_each=False):
  """The packed rows of pairs, and empty ones up to `rows`: one shape, which compiles once."""
  parts = [examples[i : i + 2] for i in range(0, len(examples), 2)] if one_pair_each else [examples]
  packed = [pairs.pack(part, 30) for part in parts]
  packed = {name: np.concatenate([part[name] for part in packed]) for name in pairs.FEATURES}
  return {name: np.pad(values, ((0, rows - len(values)), (0, 0))) for name, values in packed.items()}


def log_probs(model, batch):
  table, head = model
  return loss.token_log_probs(
    jnp.asarray(table)[batch['tokens']], head, batch['targets'], batch['loss_weights'], chunk=2
  )


@functools.partial(jax.jit, static_argnames='form')
def with_gradients(model, reference, batch, form='sum'):
  """((sum of the loss, (pairs, measured)), gradients for the table and the head)"""

  def value(model):
    logs = [log_probs(each, batch) for each in (model, reference)]
    loss_sum, sums = dpo.loss(*logs, batch['pair_ids'], batch['loss_weights'], BETA, form)
    return loss_sum, (sums.pop('pairs'), sums)

  return jax.value_and_grad(value, has_aux=True)(model)


# --- the oracle: loops over pairs, answers and tokens, in float64 ---


def token_log_prob(model, before, token):
  """(log P, its gradients for the table and the head)"""
  table, head = (np.asarray(part, np.float64) for part in model)
  x = table[before]
  exponentials = np.exp(head @ x)
  probabilities = exponentials / exponentials.sum()
  dlogits = (np.arange(V) == token) - probabilities
  dtable = np.zeros_like(table)
  dtable[before] = dlogits @ head
  return np.log(probabilities[token]), dtable, np.outer(dlogits, x)


def answer_log_prob(model, example, form):
  ids, mask = example
  terms = [token_log_prob(model, ids[t - 1], ids[t]) for t in range(1, len(ids)) if mask[t]]
  return [sum(part) / (len(terms) if form == 'mean' else 1) for part in zip(*terms, strict=True)]


def oracle(model, reference, examples, form):
  """(sum of the loss, (its gradients for the table and the head), margins, log P of the chosen, of the rejected)"""
  total, gradients, margins, logs = 0.0, [np.zeros((V, D))] * 2, [], []
  for pair in range(len(examples) // 2):
    chosen, rejected = examples[2 * pair : 2 * pair + 2]
    log_c, *grad_c = answer_log_prob(model, chosen, form)
    log_r, *grad_r = answer_log_prob(model, rejected, form)
    reward_c = BETA * (log_c - answer_log_prob(reference, chosen, form)[0])
    reward_r = BETA * (log_r - answer_log_prob(reference, rejected, form)[0])
    sigmoid = 1 / (1 + np.exp(-(reward_c - reward_r)))
    total += -np.log(sigmoid)
    gradients = [g - BETA * (1 - sigmoid) * (c - r) for g, c, r in zip(gradients, grad_c, grad_r, strict=True)]
    margins.append(reward_c - reward_r)
    logs.append((log_c, log_r))
  return total, gradients, np.array(margins), np.array(logs).T


@pytest.mark.parametrize('form', ['sum', 'mean'])
def test_the_loss_is_that_of_the_oracle_packed_and_alone(form):
  model, reference = tables()
  examples = pairs_of(7)
  want, want_gradients, margins, (log_c, log_r) = oracle(model, reference, examples, form)
  packed, alone = rows_of(examples), rows_of(examples, one_pair_each=True)
  assert packed['pair_ids'].max() >= 2 and alone['pair_ids'].max() == 1
  assert 0 < np.sum(margins > 0) < 7
  for batch in (packed, alone):
    (got, (count, measured)), gradients = with_gradients(model, reference, batch, form)
    assert float(count) == 7
    assert float(got) == pytest.approx(want, rel=1e-5)
    for a, b in zip(gradients, want_gradients, strict=True):
      np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
    assert {name: float(value) for name, value in measured.items()} == pytest.approx(
      {
        'reward_margin': margins.sum(),
        'reward_accuracy': np.sum(margins > 0),
        'log_prob_chosen': log_c.sum(),
        'log_prob_rejected': log_r.sum(),
      },
      rel=1e-5,
    )


def test_a_literal_row():
  """The logits of a position are those of the token after it: of the ids 0 1 2, those at 0 predict 1."""
  # A pair with the question 0, the chosen answer 1 2 and the rejected answer 2 0.
  examples = [(np.array(ids, np.int32), np.array([0, 1, 1], np.uint8)) for ids in ([0, 1, 2], [0, 2, 0])]
  batch = pairs.pack(examples, 6)
  assert batch['pair_ids'].tolist() == [[1, 1, -1, -1, 0, 0]]
  after = np.array([[0.1, 0.2, 0.7], [0.35, 0.25, 0.4], [0.6, 0.3, 0.1]], np.float32)  # P(column | row)
  logs = log_probs((np.log(after), np.eye(3, dtype=np.float32)), batch)
  np.testing.assert_allclose(np.exp(logs[0, :4]), [0.2, 0.4, 0.7, 0.6], rtol=1e-6)
  assert logs[0, 4:].tolist() == [0, 0]
  # The reference gives each token 1/3, which cancels: margin = beta * log(0.2 * 0.4 / (0.7 * 0.6)).
  reference = -np.log(3) * batch['loss_weights']
  got, measured = dpo.loss(logs, reference, batch['pair_ids'], batch['loss_weights'], BETA, 'sum')
  margin = BETA * np.log(0.08 / 0.42)
  assert float(measured['reward_margin']) == pytest.approx(margin, rel=1e-5)
  assert float(got) == pytest.approx(np.log1p(np.exp(-margin)), rel=1e-5)
  assert float(measured['pairs']) == 1 and float(measured['reward_accuracy']) == 0
  assert float(measured['log_prob_chosen']) == pytest.approx(np.log(0.08), rel=1e-5)
  of_reference = lambda x: dpo.loss(logs, x, batch['pair_ids'], batch['loss_weights'], BETA, 'sum')[0]
  assert not np.any(jax.grad(of_reference)(reference))  # it is no function of what is trained


def test_a_model_that_is_its_reference_and_rows_without_pairs():
  model, reference = tables()
  batch = rows_of(pairs_of(3))
  (got, (count, measured)), _ = with_gradients(model, model, batch)
  assert float(got) == pytest.approx(3 * np.log(2), rel=1e-6) and float(count) == 3
  assert float(measured['reward_margin']) == 0 == float(measured['reward_accuracy'])
  empty = {name: np.zeros_like(rows) for name, rows in batch.items()}
  (got, (count, _)), gradients = with_gradients(model, reference, empty)
  assert float(got) == float(count) == 0 and not np.any(gradients[1])


# --- TRL ---


def trl_loss(logs, reference, tokens, form):
  """The mean loss of pairs, as `DPOTrainer._compute_loss` of TRL 1.16.0 writes it; [chosen, rejected] each.

  chosen_logratios = chosen_logps - ref_chosen_logps
  rejected_logratios = rejected_logps - ref_rejected_logps
  sigmoid         -F.logsigmoid(self.beta * (chosen_scores - rejected_scores))
  sigmoid_norm    chosen_avg_score = chosen_scores / chosen_mask.sum(dim=1).clamp(min=1.0), rejected likewise,
                  -F.logsigmoid(self.beta * (chosen_avg_score - rejected_avg_score))
  """
  import torch

  scores = [policy - ref for policy, ref in zip(logs, reference, strict=True)]
  if form == 'mean':
    scores = [score / count.clamp(min=1.0) for score, count in zip(scores, tokens, strict=True)]
  return -torch.nn.functional.logsigmoid(BETA * (scores[0] - scores[1])).mean()


def in_torch(model, examples):
  """([chosen, rejected] sums of log P, tokens with loss): both [pairs], by torch's own softmax, in float64."""
  import torch

  table, head = model
  logs, tokens = [], []
  for ids, mask in examples:
    ids = torch.tensor(ids.astype(np.int64))
    logits = table[ids[:-1]] @ head.T
    each = torch.log_softmax(logits, -1).gather(1, ids[1:, None])[:, 0]
    logs.append((each * torch.tensor(mask[1:])).sum())
    tokens.append(torch.tensor(float(mask.sum())))
  halves = lambda values: [torch.stack(values[side::2]) for side in (0, 1)]
  return halves(logs), halves(tokens)


@pytest.mark.parametrize('form', ['sum', 'mean'])
def test_the_loss_is_that_of_trl(form):
  torch = pytest.importorskip('torch')
  model, reference = tables(seed=3)
  examples = pairs_of(6, seed=3)
  ours = [torch.tensor(part.astype(np.float64), requires_grad=True) for part in model]
  theirs = [torch.tensor(part.astype(np.float64)) for part in reference]
  logs, tokens = in_torch(ours, examples)
  want = trl_loss(logs, in_torch(theirs, examples)[0], tokens, form)
  want.backward()
  (got, (count, _)), gradients = with_gradients(model, reference, rows_of(examples), form)
  assert float(got) / float(count) == pytest.approx(want.item(), rel=1e-5)
  for a, b in zip(gradients, ours, strict=True):
    np.testing.assert_allclose(a / count, b.grad, atol=1e-5 * float(b.grad.abs().max()))


def test_the_formula_above_is_that_of_trl():
  torch = pytest.importorskip('torch')
  reason = 'TRL, whose own code the formula above is compared with, is not installed'
  trainer = pytest.importorskip('trl.trainer.dpo_trainer', reason=reason).DPOTrainer
  model, reference = ([torch.tensor(part) for part in each] for each in tables())
  examples = pairs_of(5)
  padded = torch.zeros(2, 10, 9, dtype=torch.int64)  # ids and mask of the chosen answers, then of the rejected ones
  for row, example in enumerate(examples[::2] + examples[1::2]):
    for part, values in enumerate(example):
      padded[part, row, : len(values)] = torch.tensor(values)
  ids, mask = padded

  class Model:
    """What TRL asks of a model: the log-probabilities of the labels, and what it measures."""

    training = False

    def __init__(self, weights):
      self._weights = weights

    def __call__(self, **_):
      table, head = self._weights
      logs = torch.log_softmax(table[ids] @ head.T, -1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
      nothing = torch.zeros_like(logs)
      measured = {'entropy': nothing, 'mean_logits': nothing, 'is_top1': nothing > 0}
      return types.SimpleNamespace(log_probs=logs * mask[:, 1:], **measured)

  batch = {'input_ids': ids, 'completion_mask': mask, 'attention_mask': torch.ones_like(ids)}
  logs, tokens = in_torch(model, examples)
  for form, name in (('sum', 'sigmoid'), ('mean', 'sigmoid_norm')):
    self = mock.MagicMock(
      model=Model(model), ref_model=Model(reference), beta=BETA, ld_alpha=None, precompute_ref_logps=False,
      aux_loss_enabled=False, f_divergence_type='reverse_kl', loss_types=[name], loss_weights=[1.0],
      use_weighting=False, label_smoothing=0.0, _total_train_tokens=0,
    )  # fmt: skip
    self.accelerator.gather = self.accelerator.gather_for_metrics = lambda x: x
    with mock.patch(f'{trainer.__module__}.disable_gradient_checkpointing', lambda *_: contextlib.nullcontext()):
      want = trainer._compute_loss(self, self.model, batch, False)
    got = trl_loss(logs, in_torch(reference, examples)[0], tokens, form)
    assert float(got) == pytest.approx(float(want), rel=1e-6)


# --- log-probabilities by chunks ---


def head_inputs(B=4, T=12, D=4, V=9, seed=0):
  rng = np.random.default_rng(seed)
  x, head = rng.standard_normal((B, T, D)).astype(np.float32), rng.standard_normal((V, D)).astype(np.float32)
  weights = (rng.random((B, T)) < np.linspace(0.1, 0.9, B)[:, None]).astype(np.float32)
  return x, head, rng.integers(0, V, (B, T)).astype(np.int32), weights


@pytest.mark.parametrize('chunk, shards', [(5, (2, 1)), (3, (2, 6))])
def test_chunks_are_the_whole(chunk, shards):
  x, head, targets, weights = head_inputs()
  counts = np.random.default_rng(1).standard_normal(targets.shape).astype(np.float32)  # of either sign

  def whole(x, head):
    logs = jax.nn.log_softmax(x @ head.T)
    return jnp.where(weights > 0, jnp.take_along_axis(logs, targets[..., None], axis=-1)[..., 0], 0)

  ours = lambda x, head: loss.token_log_probs(x, head, targets, weights, chunk, shards)
  grad = lambda f: jax.jit(
    jax.value_and_grad(lambda *args: (jnp.sum(f(*args) * counts), f(*args)), (0, 1), has_aux=True)
  )
  (_, got), gradients = grad(ours)(x, head)
  (_, want), want_gradients = grad(whole)(x, head)
  np.testing.assert_allclose(got, want, atol=3e-6)
  assert (np.asarray(got)[weights == 0] == 0).all()
  for a, b in zip(gradients, want_gradients, strict=True):
    np.testing.assert_allclose(a, b, atol=3e-6)


def test_no_array_holds_the_logits_of_a_row_and_a_frozen_head_costs_no_product(equations):
  def value(x, head, frozen):
    logs = loss.token_log_probs(x, head, jnp.zeros((2, 12), int), jnp.ones((2, 12)), 8, frozen=frozen)
    return jnp.sum(jnp.exp(logs))

  shapes = (jax.ShapeDtypeStruct((2, 12, 4), jnp.float32), jax.ShapeDtypeStruct((9, 4), jnp.float32))
  for frozen in (False, True):
    jaxpr = jax.make_jaxpr(jax.grad(functools.partial(value, frozen=frozen), (0, 1)))(*shapes)
    text = str(jaxpr)
    assert 'f32[1,8,9]' in text and '12,9]' not in text and '24,9]' not in text and '25,9]' not in text
    # The logits once in each direction, and the gradients, for each of four sizes of chunks.
    assert len(equations(jaxpr, 'dot_general')) == 4 * (3 if frozen else 4)


def test_x_without_loss_reaches_nothing():
  x, head, targets, weights = head_inputs()
  broken = np.where(weights[..., None] > 0, x, np.nan)
  value = jax.jit(jax.value_and_grad(lambda x: jnp.sum(loss.token_log_probs(x, head, targets, weights, 2))))
  (want, want_gradient), (got, gradient) = value(x), value(broken)
  assert got == want
  np.testing.assert_array_equal(gradient, want_gradient)
