"""Two ways to ask are told apart: in settings, scores and records, by --out, by `compare` and in the table."""

import dataclasses
import json

import pytest
from reciting import evaluate, lines

from mathqwen.chat.chat_format import ChatFormat
from mathqwen.chat.templates import CHATML, Template
from mathqwen.errors import UserError
from mathqwen.evals import asked, compare, records
from mathqwen.evals.report import table

OTHER = Template('own', "{% for m in messages %}{{ m.content }}{% endfor %}", date='2026-01-01', stops=())  # fmt: skip


class Renders(Template):
  """OTHER without Jinja: the tokenizer of these tests has none of the files that it reads."""

  def prompt(self, messages, tokenizer):
    return tokenizer.encode(''.join(message['content'] for message in messages))


@pytest.fixture
def in_own(reciting):
  """A model that is asked in a template of its own."""

  def make(**changes):
    model = reciting()
    model.chat = dataclasses.replace(ChatFormat(Renders(**vars(OTHER))), **changes)
    return model

  return make


def test_another_template_is_another_run(reciting, in_own, data_dir, tmp_path):
  out = tmp_path / 'out'
  scores = evaluate(in_own(), out, data_dir)['benchmarks']['arithmetic']
  assert scores['template'] == 'own' and len(scores['template_sha256']) == 64 and scores['prompt'] == 'chatml'
  assert scores == evaluate(in_own(), out, data_dir)['benchmarks']['arithmetic']
  with pytest.raises(UserError, match="holds another run .template 'own' there and 'chatml' now"):
    evaluate(reciting(), out, data_dir)
  with pytest.raises(UserError, match="holds another run .*system_prompt '' there and 'Be brief.' now"):
    evaluate(in_own(system_prompt='Be brief.'), out, data_dir)
  for record in lines(out):
    assert record['template'] == 'own' and record['system_prompt'] == '' and record['prompt'] == record['question']
  text = evaluate(in_own(), tmp_path / 'text', data_dir, prompt='alpaca')['benchmarks']['arithmetic']
  assert [text[key] for key in asked.FIELDS] == ['alpaca', None, None, None]


def test_what_an_older_version_asked_in_chatml_continues(reciting, data_dir, tmp_path):
  evaluate(reciting(), tmp_path, data_dir)
  file = tmp_path / 'arithmetic' / 'settings.json'
  before = {key: value for key, value in json.loads(file.read_text()).items() if not key.startswith('template')}
  records.write_json(file, before)
  assert evaluate(reciting(), tmp_path, data_dir)['benchmarks']['arithmetic']['template'] == 'chatml'


def test_comparisons_and_tables_say_it(reciting, in_own, data_dir, tmp_path):
  for name, model in {'a': in_own(system_prompt='Be brief.'), 'b': reciting(), 'c': reciting()}.items():
    evaluate(model, tmp_path / name, data_dir)
  same, differ = (compare.describe(compare.compare(tmp_path / a, tmp_path / 'b')) for a in 'ca')
  digest = ChatFormat(OTHER, 'Be brief.').record()['template_sha256'][:8]
  words = f'chatml, template own ({digest}), system turn "Be brief."'
  assert f'  asked differently ({words}; chatml), which may explain flips' in differ.split('\n')
  assert 'asked differently' not in same
  assert f'| {words} |' in table.table([tmp_path / 'a']) and '| chatml |' in table.table([tmp_path / 'b'])
  # The same template by two names is the same.
  assert not asked.differ(*({'prompt': 'chatml', **ChatFormat(template).record(), 'system_prompt': ''}
                            for template in (CHATML, dataclasses.replace(CHATML, name='x.jinja'))))  # fmt: skip


def test_flags_that_a_prompt_does_not_read_are_refused(fails):
  command = ('evaluate', 'nothing-here', '--benchmarks', 'gsm8k', '--prompt')
  assert fails(*command, 'alpaca', '--template', 'own') == (
    '--template own: prompt alpaca is a text without chat turns; leave it out'
  )
  for prompt in ('alpaca', 'qwen2.5-math'):
    assert fails(*command, prompt, '--system', 'x').startswith(f'--system: prompt {prompt} does not read it')
  served = ('evaluate', 'openai:http://127.0.0.1:1/v1#m', '--benchmarks', 'gsm8k', '--template', 'own')
  assert fails(*served) == '--template is decided by the server; leave it out'
