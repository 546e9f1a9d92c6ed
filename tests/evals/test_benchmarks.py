import types

import pytest

from mathqwen.errors import UserError
from mathqwen.evals import benchmarks, prompts
from mathqwen.grading import grade


def test_published_sizes_and_default_rules():
  facts = {b.name: (b.size, b.rule, b.max_new_tokens) for b in benchmarks.BENCHMARKS.values()}
  assert facts == {
    'gsm8k': (1319, 'number', 512),
    'math500': (500, 'math', 1024),
    'math': (5000, 'math', 1024),
    'math401': (401, 'math401', 256),
    'math23k': (1000, 'math23k', 512),
    'aime24': (30, 'number', 4096),
    'aime25': (30, 'number', 4096),
    'amc23': (40, 'math', 4096),
    'olympiadbench': (675, 'math', 4096),
    'minerva_math': (272, 'math', 2048),
    'svamp': (1000, 'number', 512),
    'asdiv': (2215, 'math', 512),
    'mawps': (2065, 'number', 512),
    'gsm_hard': (1319, 'number', 512),
    'gsm_plus': (9233, 'number', 512),
    'cmath': (600, 'math23k', 512),
    'cmath_test': (1098, 'math23k', 512),
    'mgsm_zh': (250, 'math23k', 512),
    'gaokao2023en': (383, 'math', 2048),
    'college_math': (1260, 'math', 2048),
    'arithmetic': (None, 'math401', 64),
  }
  assert {b.split for b in benchmarks.BENCHMARKS.values()} == {'test'}


def test_every_entry_names_a_rule_and_a_prompt_that_exist():
  for benchmark in benchmarks.BENCHMARKS.values():
    assert callable(grade.get(benchmark.rule)) and prompts.get(benchmark.prompt)
    assert {*benchmark.by_prompt} <= {*prompts.PROMPTS}
    assert {settings.rule for settings in benchmark.by_prompt.values()} <= {*grade.RULES}


def test_how_published_systems_were_measured():
  facts = {
    (prompt, benchmark.name): (settings.rule, settings.max_new_tokens)
    for benchmark in benchmarks.BENCHMARKS.values()
    for prompt, settings in benchmark.by_prompt.items()
  }
  assert facts == {
    ('qwen-chat', 'gsm8k'): ('qwen-chat', None),
    ('qwen-chat-few-shot', 'gsm8k'): ('qwen-chat', None),
    ('qwen-base', 'gsm8k'): ('qwen-base', None),
    ('qwen2.5-math', 'gsm8k'): ('number', 2048),
    ('qwen2.5-math', 'math'): ('math', 2048),
    ('qwen2.5-math', 'math500'): ('math', 2048),
    ('alpaca', 'gsm8k'): ('rft', 256),
    ('wizardmath', 'gsm8k'): ('wizardmath-gsm8k', 1024),
    ('wizardmath', 'math'): ('wizardmath-math', 2048),
    ('wizardmath', 'math500'): ('wizardmath-math', 2048),
    ('abel', 'gsm8k'): ('abel', 2048),
    ('abel', 'math'): ('abel', 2048),
    ('abel', 'math500'): ('abel', 2048),
    ('minerva', 'math'): ('minerva', None),
    ('minerva', 'math500'): ('minerva', None),
    ('lm-eval', 'gsm8k'): ('lm-eval-strict', 256),
  }


def test_unknown_names_are_answered_with_the_nearest():
  with pytest.raises(UserError, match="unknown benchmark 'gsm8'; did you mean 'gsm8k'.*math23k"):
    benchmarks.get('gsm8')
  with pytest.raises(UserError, match="unknown benchmark 'GSM8K'; did you mean 'gsm8k'"):
    benchmarks.get('GSM8K')
  with pytest.raises(UserError, match="unknown benchmark 'zzz'; there are: gsm8k"):
    benchmarks.get('zzz')
  with pytest.raises(UserError, match="unknown prompt 'chatlm'; did you mean 'chatml'"):
    prompts.get('chatlm')


def test_prompts():
  example = types.SimpleNamespace(question='1+1=')
  assert prompts.get('chatml').messages(example, '') == [{'role': 'user', 'content': '1+1='}]
  assert prompts.get('chatml').messages(example, 'Be brief.') == [
    {'role': 'system', 'content': 'Be brief.'},
    {'role': 'user', 'content': '1+1='},
  ]
  boxed = 'Please reason step by step, and put your final answer within \\boxed{}.'
  assert prompts.get('qwen2.5-math').messages(example, 'Be brief.') == [
    {'role': 'system', 'content': boxed},
    {'role': 'user', 'content': '1+1='},
  ]
  assert prompts.get('qwen-chat').messages(example, 'Be brief.') == [
    {'role': 'system', 'content': 'You are a helpful assistant.'},
    {'role': 'user', 'content': '1+1='},
  ]


def test_groups():
  math = benchmarks.get('math')
  assert math.groups_of({'extra': {'level': 5, 'subject': 'Algebra'}}) == ['Level 5', 'Algebra']
  assert math.groups_of({'level': 'Level 2', 'type': 'Geometry'}) == ['Level 2', 'Geometry']
  assert math.groups_of({'extra': {'level': None, 'subject': 'Geometry'}}) == ['Geometry']
  assert benchmarks.get('math401').groups_of({'extra': {'group': 'add_sub_10'}}) == ['add_sub_10']
  assert benchmarks.get('gsm8k').groups_of({'extra': {}}) == []
