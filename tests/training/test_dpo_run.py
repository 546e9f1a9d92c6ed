"""The step on pairs, and whole runs of it: adapters or all weights, micro-batches, resume, refusals."""

import contextlib
import io
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_batches import train_config

from mathqwen import cli
from mathqwen.adapter_config import AdapterConfig
from mathqwen.data import pairs
from mathqwen.model import lora, qwen
from mathqwen.training import step as step_lib


def pairs_of(count, seed=0):
  """(ids, mask) of chosen and rejected answers in turn, to questions of three ids."""
  rng = np.random.default_rng(seed)
  found = []
  for number in range(count):
    question = [number, *rng.integers(0, 97, 2)]
    for _ in range(2):
      answer = rng.integers(0, 97, rng.integers(1, 6))
      found.append((np.array([*question, *answer], np.int32), np.repeat(np.array([0, 1], np.uint8), [3, len(answer)])))
  return found


def slow_loss(params, reference, examples, cfg, beta):
  """The mean loss of pairs: each answer in a row of its own, with all logits."""
  longest = max(len(ids) for ids, _ in examples)
  ids, mask = (np.array([np.pad(each[part], (0, longest - len(each[0]))) for each in examples]) for part in (0, 1))

  def log_probs(weights):
    logits = qwen.forward(weights, cfg, ids[:, :-1]) @ qwen.head(weights).T
    each = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[:, 1:, None], axis=2)[..., 0]
    return jnp.sum(each * mask[:, 1:], axis=1)

  ratio = log_probs(params) - log_probs(reference)
  return -jnp.mean(jax.nn.log_sigmoid(beta * (ratio[::2] - ratio[1::2])))


@pytest.mark.parametrize('adapted', [False, True])
def test_the_gradient_of_packed_pairs_is_that_of_pairs_alone(adapted, tiny_config, random_params):
  cfg = tiny_config('qwen2', num_hidden_layers=1)
  examples, base = pairs_of(5), random_params(cfg, seed=1)
  adapter = AdapterConfig(2, targets=('q', 'up'), base='float32') if adapted else AdapterConfig()
  params, whole = random_params(cfg), lambda params: params
  if adapted:
    params = jax.tree.map(lambda x: x + 0.1, lora.init(jax.random.key(0), cfg, adapter))
    whole = lambda params: lora.join(base, params, adapter)
  oracle = jax.jit(jax.value_and_grad(lambda params: slow_loss(whole(params), base, examples, cfg, 0.2)))
  want, want_gradient = oracle(params)
  rows = pairs.pack(examples, 24)
  rows = {name: np.pad(values, ((0, 4 - len(values)), (0, 0))) for name, values in rows.items()}
  counts = rows['pair_ids'].max(axis=1)
  assert counts.sum() == 5 and counts.max() > 1 and counts[::2].sum() != counts[1::2].sum()
  # Without adapters in two micro-batches, which hold unequal numbers of pairs.
  settings = {'objective': 'dpo', 'dpo_beta': 0.2, 'loss_chunk': 1, 'micro_batches': 1 if adapted else 2}
  train = train_config(adapter=adapter, **settings)
  run = jax.jit(lambda params: step_lib.gradients(params, rows, jax.random.key(0), cfg=cfg, train=train, base=base))
  got, loss_sum, sums = run(params)
  assert float(sums['pairs']) == 5 and float(loss_sum) / 5 == pytest.approx(float(want), rel=1e-5)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want_gradient), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max())


def test_the_reference_has_no_dropout(tiny_config, random_params, monkeypatch):
  cfg, adapter = tiny_config(num_hidden_layers=1), AdapterConfig(2, targets=('q',), dropout=0.5)
  base = random_params(cfg)
  params = lora.init(jax.random.key(0), cfg, adapter)
  rows = {name: jnp.asarray(values) for name, values in pairs.pack(pairs_of(2), 24).items()}
  train = train_config(adapter=adapter, objective='dpo', dropout=0.5)
  computes, forward = [], qwen.forward
  monkeypatch.setattr(qwen, 'forward', lambda *args: computes.append(args[-1]) or forward(*args))
  step_lib.loss_fn(params, rows, jax.random.key(1), cfg=cfg, train=train, base=base)
  drops = [[each.key is not None for each in (compute.dropout, compute.adapter_dropout)] for compute in computes]
  assert drops == [[True, True], [False, False]]


# --- runs ---


@pytest.fixture(scope='module')
def prepared(tiny, trained, tmp_path_factory):
  """(the command of a run of pairs in a workdir, without one) on the tiny model, against itself."""
  folder = tmp_path_factory.mktemp('dpo')
  rows = [{'prompt': f'{a}+{b}=', 'chosen': str(a + b), 'rejected': 'no'} for a in range(11, 27) for b in range(3, 9)]
  (folder / 'pairs.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  settings = {
    'data.sources': folder / 'pairs.jsonl', 'train.objective': 'dpo', 'train.steps': 6, 'train.dropout': 0.0,
    'train.log_every': 1, 'train.eval_every': 3, 'train.checkpoint_every': 3, 'optim.warmup_steps': 0,
    'optim.learning_rate': 1e-3, 'optim.schedule': 'constant',
  }  # fmt: skip
  return folder, ['train', tiny.config, '--init', str(trained), *with_settings(settings)]


def with_settings(settings):
  return [word for name, value in settings.items() for word in ('--set', f'{name}={value}')]


def lines_of(workdir):
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


@pytest.fixture(scope='module')
def finished(prepared):
  """(workdir of a whole run that trains all weights, what it said, its JSON)"""
  folder, command = prepared
  with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
    assert cli.main([*command, '--workdir', str(folder / 'run'), '--json']) == 0
  return folder / 'run', err.getvalue(), json.loads(out.getvalue().splitlines()[-1])


def test_a_run_learns_what_is_preferred(finished):
  workdir, said, summary = finished
  assert 'pairs.jsonl: 80 pairs, ' in said and 'held out for the evaluation loss: 16 pairs' in said
  steps = [line for line in lines_of(workdir) if 'loss' in line]
  first, last = steps[0], steps[-1]
  assert first['loss'] == pytest.approx(np.log(2), abs=1e-5) and first['reward_margin'] == pytest.approx(0, abs=1e-4)
  assert last['loss'] < first['loss'] and last['reward_margin'] > 0 and last['reward_accuracy'] > 0.5
  assert last['log_prob_chosen'] < 0 and last['log_prob_rejected'] < 0
  (_, evaluated) = [line for line in lines_of(workdir) if 'eval_loss' in line]
  assert summary['eval_loss'] == evaluated['eval_loss'] < np.log(2) and evaluated['eval_reward_accuracy'] > 0.5
  assert json.loads((workdir / 'experiment.json').read_text())['train']['objective'] == 'dpo'


def test_a_continued_run_has_the_same_reference(finished, prepared, fails, trained, tmp_path):
  _, command = prepared
  workdir, *_ = finished
  shutil.copytree(workdir, tmp_path / 'stopped')
  shutil.rmtree(tmp_path / 'stopped' / 'checkpoints' / '6')
  command = [*command, '--workdir', str(tmp_path / 'stopped')]
  # Another step of the model that it began with is another reference.
  others = [str(trained / 'checkpoints' / '7') if word == str(trained) else word for word in command]
  assert 'is not the base of' in fails(*others)
  assert cli.main(command) == 0
  steps, again = ([line for line in lines_of(of) if 'loss' in line] for of in (workdir, tmp_path / 'stopped'))
  for name in ('step', 'loss', 'grad_norm', 'reward_margin', 'log_prob_chosen'):
    assert [line[name] for line in again] == [line[name] for line in steps], name


@pytest.mark.parametrize('base', ['bfloat16', 'nf4'])
def test_adapters_learn_what_is_preferred(base, prepared, tmp_path):
  """The reference is the base as it is held, in 4 bits too: at first nothing is preferred."""
  _, command = prepared
  adapter = with_settings({'train.adapter.base': base})
  adapter += with_settings({'train.adapter.rank': 2, 'train.steps': 3, 'train.dpo_form': 'mean', 'train.dpo_beta': 1})
  assert cli.main([*command, *adapter, '--workdir', str(tmp_path / 'run')]) == 0
  steps = [line for line in lines_of(tmp_path / 'run') if 'loss' in line]
  assert steps[0]['loss'] == pytest.approx(np.log(2), abs=1e-5) and steps[-1]['loss'] < np.log(2)


def test_refusals(prepared, tiny, fails, tmp_path):
  _, command = prepared
  command = [*command, '--workdir', str(tmp_path / 'run')]
  without_init = [word for at, word in enumerate(command) if '--init' not in command[at - 1 : at + 1]]
  assert 'train.objective=dpo compares with the model that it begins with' in fails(*without_init)
  assert 'single answers are for train.objective=sft' in fails(*command, '--set', f'data.sources={tiny.train}')
  sft = with_settings({'train.objective': 'sft'})
  assert 'pairs are for train.objective=dpo' in fails(*command, *sft)
  assert 'nothing reads it, because train.objective=sft' in fails(*command, *sft, '--set', 'train.dpo_beta=0.2')
  assert 'data.share_prompts is not for pairs' in fails(*command, '--set', 'data.share_prompts=true')
  assert not (tmp_path / 'run' / 'experiment.json').exists()


def test_inspect_shows_pairs(prepared, capsys):
  _, command = prepared
  assert cli.main(['data', 'inspect', command[1], *command[4:]]) == 0
  out = capsys.readouterr().out
  assert 'pairs.jsonl: 96 pairs, ' in out and 'positions for each pair' in out
  assert ', chosen of pair 1: ' in out and ', rejected of pair 1: ' in out
