"""A budget of thinking: the tokens up to it are the model's own, then the thinking is closed and the answer follows."""

import jax
import numpy as np
import pytest

from mathqwen.chat import thinking
from mathqwen.errors import UserError
from mathqwen.inference import generate
from mathqwen.inference.model import Model
from mathqwen.inference.sampling import Sampling
from mathqwen.text.loading import load_tokenizer

BUDGET, LIMIT, WIDTH = 7, 70, 120
THINKS = [True, False, True, True, False]


@pytest.fixture(scope='module')
def model(tiny_config, random_params, compiled_once):
  tokenizer = load_tokenizer()
  cfg = tiny_config(vocab_size=tokenizer.vocab_size, num_hidden_layers=1)
  return Model('tiny', cfg, tokenizer, random_params(cfg), 'float32')


@pytest.fixture(scope='module')
def prompts(model):
  texts = [f'{7 * i}+{i}=' + ('\n<think>\n' if thinks else '') for i, thinks in enumerate(THINKS)]
  return [model.tokenizer.encode(text) for text in texts]


def slowly(model, prompt, stream, temperature):
  """Generates, cuts, appends and generates: one token at a time, each from all tokens before it."""
  answer, forced = [], thinking.closing_ids('</think>', model.tokenizer)
  key = jax.random.fold_in(jax.random.key(3), stream)
  stops = model.chat.stop_ids(model.tokenizer)
  while len(answer) < LIMIT and not (answer and answer[-1] in stops):
    if len(answer) == BUDGET and THINKS[stream]:
      answer = answer + forced
      continue
    read = [*prompt, *answer]
    logits = model.logits(np.array([read + [0] * (WIDTH - len(read))]))[0, len(read) - 1]
    step = jax.random.fold_in(key, len(answer))[None]
    answer.append(int(generate.sample(logits[None], step, Sampling(temperature))[0]))
  return answer


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_a_budget_is_a_cut_and_an_appended_close(model, prompts, temperature):
  want = [slowly(model, prompt, i, temperature) for i, prompt in enumerate(prompts)]
  for batch_size in (2, 8):
    cut, done = [], {}
    got = model.generate_ids(
      prompts, LIMIT, temperature, seed=3, batch_size=batch_size, on_done=done.__setitem__,
      max_thinking_tokens=BUDGET, on_cut=cut.append,
    )  # fmt: skip
    assert got == want and done == dict(enumerate(want))
    long_enough = [i for i, answer in enumerate(want) if THINKS[i] and len(answer) > BUDGET]
    assert sorted(cut) == long_enough and len(cut) >= 2
  text = model.tokenizer.decode(want[cut[0]])
  assert '\n</think>\n\nThe final answer is' in text
  counts = [thinking.count(prompt, answer, model.tokenizer) for prompt, answer in zip(prompts, want, strict=True)]
  assert [counts[i] > BUDGET for i in cut] == [True] * len(cut) and counts[1] == 0


def test_a_budget_needs_room_for_an_answer(model, prompts):
  for budget in (0, LIMIT - 1):
    with pytest.raises(
      UserError, match=f'max_thinking_tokens is {budget}: with max_new_tokens {LIMIT}, it must be from 1'
    ):
      model.generate_ids(prompts, LIMIT, max_thinking_tokens=budget)


@pytest.mark.parametrize(
  'prompt, answer, tag',
  [
    ('x<think>\n', 'Maybe', '</think>'),
    ('x', '<think>Maybe', '</think>'),
    ('x', '<think>Maybe</think>18', None),
    ('x<think>', 'Maybe</think>18', None),
    ('x<think>', '</think>\n<think>again', '</think>'),
    ('What is <think>? x', '18', None),
    ('x', '[THINK]Maybe', '[/THINK]'),
    ('x', '<scratchpad>Maybe', '</scratchpad>'),
    ('x', '18', None),
  ],
)
def test_open_thinking(prompt, answer, tag):
  assert thinking.closing_tag(prompt, answer) == tag


def test_a_tag_that_is_a_token():
  class Named:
    special = {'</think>': 300}

    def encode(self, text):
      return list(text.encode())

  assert thinking.closing_ids('</think>', Named()) == [10, 300, *b'\n\nThe final answer is']
