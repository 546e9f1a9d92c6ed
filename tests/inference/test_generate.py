import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mathqwen.errors import UserError
from mathqwen.inference import generate, shapes
from mathqwen.inference.sampling import AnswerRequest, Sampling

PROMPTS = [[5, 0, 9, 77], [1, 2, 3, 4, 5, 6, 7, 8, 9], [0], [0, 0, 40, 50, 60, 0], [96, 13]]


@pytest.fixture(scope='module')
def model(tiny_config, random_params):
  # Of sizes that a CPU has in panels, and with ids that no tokenizer knows.
  cfg = tiny_config('qwen3', num_hidden_layers=2, hidden_size=64, intermediate_size=128, vocab_size=128)
  return random_params(cfg), cfg


REQUEST = AnswerRequest(max_new_tokens=10, vocab_size=97, stop_ids=(11,))


def answers_of(model, prompts=PROMPTS, batch_size=32, ended=None, on_done=None, **changes):
  """changes: fields of `AnswerRequest`."""
  request, execution = dataclasses.replace(REQUEST, **changes), generate.Execution(batch_size)
  return generate.generate(*model, prompts, request, execution, ended, on_done)


@pytest.mark.parametrize('family', ['qwen2', 'qwen3'])
def test_greedy_answers_of_transformers(family, torch_model, from_torch):
  import torch

  reference = torch_model(family)
  cfg, params = from_torch(reference)
  width = max(map(len, PROMPTS))
  ids = torch.tensor([[0] * (width - len(p)) + p for p in PROMPTS])
  mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS])
  free = reference.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=10)
  stops = (int(free[0, width + 3]), int(free[1, width + 6]))
  out = reference.generate(
    ids, attention_mask=mask, do_sample=False, max_new_tokens=10, eos_token_id=list(stops), pad_token_id=stops[0]
  )
  ends = [next((n for n, i in enumerate(row, 1) if i in stops), 10) for row in out[:, width:].tolist()]
  want = [row[:end] for row, end in zip(out[:, width:].tolist(), ends, strict=True)]
  assert min(ends) <= 4 and max(ends) == 10  # some stop and some run into the limit
  got = answers_of((params, cfg), stop_ids=stops)
  assert got == want


def test_answers_alone_are_answers_in_a_batch(model):
  together = answers_of(model)
  assert [answers_of(model, [prompt])[0] for prompt in PROMPTS] == together
  assert len({tuple(answer) for answer in together}) == len(PROMPTS)


def test_an_answer_ends_with_its_stop_id(model):
  free = answers_of(model, stop_ids=(1000,))
  assert [len(answer) for answer in free] == [10] * 5
  stop = free[2][4]
  done = {}
  stopped = answers_of(model, stop_ids=(1000, stop), on_done=done.__setitem__)
  assert stopped == [a[: a.index(stop) + 1] if stop in a else a for a in free]
  assert stopped[2][-1] == stop and done == dict(enumerate(stopped))


def test_samples_follow_the_seed_and_no_neighbour(model):
  draw = lambda **changes: answers_of(model, sampling=Sampling(1.0), stop_ids=(1000,), **changes)
  first = draw(seed=3)
  assert first == draw(seed=3) == draw(seed=3, batch_size=1) == draw(seed=3, batch_size=2)
  assert first != draw(seed=4)
  # Equal prompts draw different answers.
  a, b = draw(seed=3, prompts=[[5, 6], [5, 6]])
  assert a != b


def literal_candidates(logits, sampling):
  """{id: probability} after temperature, then top-k, then top-p."""
  order = sorted(range(len(logits)), key=lambda i: -logits[i])
  if sampling.top_k:
    order = order[: sampling.top_k]
  weights = [np.exp(logits[i] / sampling.temperature) for i in order]
  kept, mass = {}, 0.0
  for i, weight in zip(order, weights, strict=True):
    if mass >= sampling.top_p:
      break
    kept[i] = weight
    mass += weight / sum(weights)
  return {i: weight / sum(kept.values()) for i, weight in kept.items()}


@pytest.mark.parametrize(
  'sampling',
  [
    Sampling(1.0),
    Sampling(0.7, top_k=3),
    Sampling(1.5, top_p=0.8),
    Sampling(1.0, top_p=0.75, top_k=4),
    Sampling(2.0, top_p=0.01),
    Sampling(1.0, top_k=50),
  ],
  ids=str,
)
def test_sampling_draws_from_the_literal_distribution(sampling):
  logits = np.array([0.3, 2.0, -1.0, 1.2, 0.9, -3.0, 1.9, 0.0], np.float32)
  n = 4000
  keys = jax.random.split(jax.random.key(0), n)
  drawn = np.asarray(generate.sample(jnp.broadcast_to(logits, (n, 8)), keys, sampling))
  want = literal_candidates(logits.tolist(), sampling)
  for i in range(8):
    p, found = want.get(i, 0.0), float(np.mean(drawn == i))
    assert (found == 0) if p == 0 else abs(found - p) < 4.5 * (p * (1 - p) / n) ** 0.5 + 1e-9, (i, p, found)


def test_temperature_zero_takes_the_largest():
  logits = np.random.default_rng(0).standard_normal((5, 9)).astype(np.float32)
  assert generate.sample(logits, None, Sampling()).tolist() == logits.argmax(axis=1).tolist()


@pytest.mark.parametrize('sampling', [Sampling(), Sampling(5.0), Sampling(5.0, 0.999, 96)], ids=str)
def test_padding_rows_of_the_embedding_are_never_drawn(sampling, model):
  drawn = answers_of(model, PROMPTS * 6, sampling=sampling, vocab_size=20, stop_ids=(1000,))
  assert max(map(max, drawn)) < 20
  if sampling.temperature:
    assert {i for answer in drawn for i in answer} == set(range(20))


def test_few_programs_serve_many_shapes(model):
  programs = lambda: tuple(f._cache_size() for f in (generate.prefill, generate.insert, generate.decode))
  before = programs()
  count = lambda: tuple(now - then for now, then in zip(programs(), before, strict=True))
  run = lambda *lengths: answers_of(model, [[7] * n for n in lengths], max_new_tokens=3, batch_size=2)
  run(1, 2, 3, 30, 61)
  assert count() == (1, 1, 1)
  run(5, 9)
  assert count() == (1, 1, 1)
  run(65, 66, 9, 3)  # the next width for the longer ones, which the others do not need
  assert count() == (2, 2, 2)
  run(4)  # one prompt alone
  assert max(count()) <= 3


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'max_new_tokens': 0}, 'max_new_tokens is 0'),
    ({'batch_size': 0}, 'batch_size is 0'),
    ({'prompts': [[1], []]}, 'prompt 1 is empty'),
    ({'prompts': [[1], [3, -1]]}, 'prompt 1 has ids outside 0 to'),
    ({'prompts': [[10**6]]}, 'prompt 0 has ids outside 0 to'),
    ({'prompts': [[1] * 120]}, 'max_new_tokens to at most 8'),
  ],
)
def test_what_cannot_be_generated(changes, message, model):
  with pytest.raises(UserError, match=message):
    answers_of(model, **changes)


@pytest.mark.parametrize('settings', [{'temperature': -1}, {'top_p': 0}, {'top_p': 1.1}, {'top_k': -1}])
def test_sampling_refuses(settings):
  with pytest.raises(UserError, match=next(iter(settings))):
    Sampling(**settings)


@pytest.mark.parametrize('together', [1, 3, 4])
def test_slots_are_filled_again(together, model, monkeypatch):
  """Twelve answers of unequal limits in four slots: each is that of its prompt alone, and they end as they are done."""
  monkeypatch.setattr(shapes, 'PREFILL', 64 * together)
  prompts = [[(7 * i + j) % 97 for j in range(1 + i % 5)] for i in range(12)]
  limits = [3, 40, 5, 2, 9, 1, 33, 4, 8, 6, 7, 10]
  free = {'stop_ids': (1000,), 'batch_size': 4}
  ended, steps, decode = [], [], generate.decode
  monkeypatch.setattr(generate, 'decode', lambda *args, **kw: steps.append(kw['steps']) or decode(*args, **kw))
  got = answers_of(model, prompts, max_new_tokens=limits, on_done=lambda i, ids: ended.append(i), **free)
  assert [len(answer) for answer in got] == limits and sorted(ended) == list(range(12))
  assert ended.index(1) > ended.index(5)  # the long one does not hold up the others
  assert len(steps) < 14
  for i in (0, 1, 6, 11):
    assert got[i] == answers_of(model, [prompts[i]], max_new_tokens=limits[i], stop_ids=(1000,))[0]


def test_an_answer_ends_where_it_may(model):
  free = answers_of(model, max_new_tokens=80, stop_ids=(1000,))
  ended = lambda ids: len(ids) >= 40 and ids[39] == free[1][39]
  got = answers_of(model, max_new_tokens=80, stop_ids=(1000,), ended=ended)
  assert got[1] == free[1][: 2 * generate.STEPS]  # asked after every 32
  assert [a == b for a, b in zip(got, free, strict=True)].count(False) >= 1


def test_streams_say_which_random_numbers_are_drawn(model):
  draw = lambda prompts, **changes: answers_of(model, prompts, sampling=Sampling(1.0), stop_ids=(1000,), **changes)
  both = draw([[5, 6], [5, 6]])
  assert draw([[5, 6], [5, 6]], streams=[1, 0]) == both[::-1]
  assert draw([[5, 6]], streams=[1]) == both[1:]
