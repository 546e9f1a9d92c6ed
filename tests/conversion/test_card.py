"""The model card says what a run did, and how an adapter is asked as it was trained."""

import types

import pytest

from mathqwen import config as config_lib
from mathqwen.conversion import card

ADAPTER = 'train.adapter.rank=8'
DPO = 'train.objective=dpo'


def source(tiny, init, settings=(), layout='qwen2'):
  """What a card is written of: a run from `init`, whose base has files of `layout`."""
  experiment = config_lib.override(config_lib.load(tiny.config), [f'init={init}', *settings])
  weights = types.SimpleNamespace(base_name=init, layout=layout, is_quantized=False)
  return types.SimpleNamespace(experiment=experiment, step=20, weights=weights)


# The settings, whether the adapter is alone, what is said before the table of the settings.
TRAINING = {
  'plain': (
    (),
    False,
    '20 steps from mine with the recipe of the Qwen Technical Report, section 5 (cross-entropy on the assistant turns, '
    'AdamW, warmup, then decay), with these settings:',
  ),
  'pairs': (
    (DPO, 'train.dpo_form=mean', 'train.dpo_beta=0.25'),
    False,
    '20 steps from mine with DPO (arXiv 2305.18290) on pairs of a chosen and a rejected answer, against the model that '
    'it began with (form mean, beta 0.25), with these settings:',
  ),
  'adapter alone': (
    (ADAPTER, 'train.adapter.base=nf4'),
    True,
    'LoRA adapters of rank 8 on a base that was frozen in nf4. These files are the adapters alone. '
    '20 steps from mine with cross-entropy on the assistant turns, with these settings:',
  ),
  'merged': (
    (ADAPTER, 'train.adapter.base=int8'),
    False,
    'LoRA adapters of rank 8 on a base that was frozen in int8. These files are the dequantised base, with the '
    'adapters merged into it. 20 steps from mine with cross-entropy on the assistant turns, with these settings:',
  ),
  'adapter on pairs': (
    (ADAPTER, 'train.adapter.dora=true', DPO),
    False,
    'DoRA adapters of rank 8 on a base that was frozen in bfloat16. These files are the base, with the adapters merged '
    'into it. 20 steps from mine with DPO (arXiv 2305.18290) on pairs of a chosen and a rejected answer, against the '
    'model that it began with (form sum, beta 0.1), with these settings:',
  ),
}


@pytest.mark.parametrize('case', TRAINING)
def test_what_a_run_did(case, tiny):
  settings, alone, text = TRAINING[case]
  lines = card._training(source(tiny, '/models/mine', settings), None, alone)
  assert ' '.join(line for line in lines[2 : lines.index('| setting | value |')] if line) == text


@pytest.mark.parametrize(
  'init, layout, base, explained',
  [
    ('hf://Qwen/Qwen2.5-7B', 'qwen2', 'Qwen/Qwen2.5-7B', 'this directory. '),
    ('/models/mine', 'qwen2', 'BASE', 'this directory, `BASE` that of mine. '),
    ('/runs/mine/checkpoints/7', None, 'BASE', '`BASE` what `mathqwen convert to-hf` writes from mine. '),
    ('hf://some/adapter', None, 'BASE', '`BASE` what `mathqwen convert to-hf` writes from some/adapter. '),
  ],
)
def test_commands_for_an_adapter_stop_where_its_answers_end(init, layout, base, explained, tiny):
  text = '\n'.join(card._use(source(tiny, init, [ADAPTER], layout)))
  assert explained in text and f"from_pretrained('{base}')" in text
  assert "model.generation_config = GenerationConfig.from_pretrained('adapter')" in text
  served = f'vllm serve {base} --enable-lora --lora-modules math=adapter'
  assert f'{served} --max-lora-rank 16 --tokenizer adapter --generation-config adapter' in text


@pytest.mark.parametrize(
  'settings, vllm',
  [
    (['train.adapter.rank=24'], '--max-lora-rank 32 '),
    (['train.adapter.rank=600'], 'math=adapter --tokenizer'),
    ([ADAPTER, 'train.adapter.dora=true'], 'vLLM loads no DoRA'),
  ],
)
def test_what_vllm_takes(settings, vllm, tiny):
  text = '\n'.join(card._use(source(tiny, '/models/mine', settings)))
  assert vllm in text and ('vllm serve' in text) == ('DoRA' not in vllm)
