"""Weights held in int8 for answers: on one device as the dequantised weights, from the command line and from Python."""

import json

import jax
import numpy as np
import pytest

import mathqwen
from mathqwen.cli import main
from mathqwen.errors import UserError
from mathqwen.inference import generate
from mathqwen.inference.sampling import AnswerRequest
from mathqwen.model import frozen, qwen
from mathqwen.model.quantized import is_quantized

PROMPTS = [[5, 0, 9, 77], [1, 2, 3, 4, 5, 6, 7, 8, 9], [0]]
REQUEST = AnswerRequest(max_new_tokens=8, vocab_size=97, stop_ids=(1000,))
# Qwen-1 acts on lengths beyond seq_length.
FAMILIES = {
  'qwen1': ('qwen2', {'num_key_value_heads': 6, 'seq_length': 8, 'use_dynamic_ntk': True, 'use_logn_attn': True}),
  'qwen2': ('qwen2', {'tie_word_embeddings': True}),
  'qwen3': ('qwen3', {}),
  'llama': ('llama', {}),
}


def dequantized(w):
  """Of a table, or stacked."""
  if not is_quantized(w):
    return w
  of_one = lambda w: w.dequantized('float32')
  return of_one(w) if w.codes.ndim == 2 else jax.vmap(of_one)(w)


def held(params):
  hold = lambda keys, w: frozen.hold(w, tuple(key.key for key in keys), 'int8', tables=True)
  return jax.tree_util.tree_map_with_path(hold, params)


@pytest.mark.parametrize('family', FAMILIES)
def test_logits_are_those_of_the_dequantised_weights(family, tiny_config, random_params):
  name, changes = FAMILIES[family]
  cfg = tiny_config(name, num_hidden_layers=2, **changes)
  params = random_params(cfg)
  in_int8 = held(params)
  arrays = [w for w in jax.tree.leaves(in_int8) if w.size > 500]
  assert len(arrays) == 8 + (not cfg.tie_word_embeddings) and all(w.dtype == np.int8 for w in arrays)
  dense = jax.tree.map(dequantized, in_int8, is_leaf=is_quantized)
  logits = jax.jit(lambda p: qwen.unembed(p, qwen.forward(p, cfg, np.array(PROMPTS[1:2]))))
  got, want, exact = (np.asarray(logits(p)) for p in (in_int8, dense, params))
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
  assert 1e-4 < np.abs(got - exact).max() / np.abs(exact).max() < 0.1


def test_answers_are_those_of_the_dequantised_weights(tiny_config, random_params):
  cfg = tiny_config('qwen2', num_hidden_layers=2, tie_word_embeddings=True)
  in_int8 = held(random_params(cfg))
  dense = jax.tree.map(dequantized, in_int8, is_leaf=is_quantized)
  assert generate.decoder_for(in_int8, None) is generate.ACCELERATOR
  answers = [generate.generate(p, cfg, PROMPTS, REQUEST) for p in (in_int8, dense)]
  assert answers[0] == answers[1] and len({tuple(answer) for answer in answers[0]}) == 3


def test_a_run_answers_with_int8_weights(tiny, trained, tmp_path, capsys):
  model = mathqwen.load(str(trained), dtype='float32', weights='int8')
  plain = mathqwen.load(str(trained), dtype='float32')
  held, whole = (sum(w.nbytes for w in jax.tree.leaves(m.params)) for m in (model, plain))
  assert held < 0.3 * whole
  questions = [f'{a}+{b}=' for a, b in ((11, 3), (12, 9), (20, 7))]
  assert main(['generate', str(trained), *questions, '--weights', 'int8', '--max-new-tokens', '4', '--json']) == 0
  answers = json.loads(capsys.readouterr().out.splitlines()[-1])['answers']
  assert answers == model.generate(questions, max_new_tokens=4)

  options = ['--benchmarks', 'arithmetic', '--data-dir', tiny.data_dir, '--out', str(tmp_path)]
  options += ['--limit', '4', '--max-new-tokens', '3']
  assert main(['evaluate', str(trained), *options, '--weights', 'int8']) == 0
  scores = json.loads((tmp_path / 'arithmetic' / 'scores.json').read_text())
  assert scores['dtype'] == 'float32, int8 weights'
  assert main(['evaluate', str(trained), *options]) == 2  # other weights do not continue it
  assert 'int8' in capsys.readouterr().err.splitlines()[-1]
  with pytest.raises(UserError, match="loaded with weights='int8': to save it, load it without"):
    model.save_hf(str(tmp_path / 'out'))
  with pytest.raises(UserError, match="weights is 'int8': a loaded model keeps its own"):
    mathqwen.evaluate(plain, 'arithmetic', weights='int8')
  with pytest.raises(UserError, match="weights 'int4' is not int8"):
    mathqwen.load(str(trained), weights='int4')


def test_a_served_model_decides_its_own_weights(capsys):
  assert main(['evaluate', 'openai:http://localhost:1#m', '--benchmarks', 'gsm8k', '--weights', 'int8']) == 2
  assert '--weights is decided by the server' in capsys.readouterr().err
