"""Rows of published data sets, with their quirks, through the code that reads the hub; and what is said of licences."""

import json

import pytest
from json_lines import write_lines

from mathqwen import files
from mathqwen.config import DataConfig
from mathqwen.data import hub_sets, origins, published
from mathqwen.data.left_out import Report
from mathqwen.data.sources import load, stream
from mathqwen.data.training_data import TrainingData
from mathqwen.errors import UserError
from mathqwen.text.loading import load_tokenizer

DAPO = (
  'Solve the following math problem step by step. The last line of your response should be of the form Answer: $Answer '
  '(without quotes) where $Answer is the answer to the problem.\n\nWhat is $1 + 1$?\n\nRemember to put your answer on '
  'its own line after "Answer:".'
)
OPENR1 = {
  'problem': '1 + 1 = ?',
  'solution': 'Two.',
  'answer': '2',
  'source': 'olympiads',
  'generations': ['<think>x</think>\n\\boxed{2}', '<think>y</think>\n\\boxed{3}', '<think>', '<think>z</think>\n2'],
  'correctness_math_verify': [True, False, True, False],
  'correctness_llama': [None, False, None, True],
  'is_reasoning_complete': [True, True, False, True],
  'finish_reasons': None,
  'messages': [{'role': 'user', 'content': '1 + 1 = ?'}, {'role': 'assistant', 'content': 'x'}],
}
NUMINA = {'problem': '1 + 1 = ?', 'solution': 'Two, $\\boxed{2}$.', 'problem_type': 'Algebra', 'synthetic': False}
GENERATED = {'problem': '1 + 1 = ?', 'generated_solution': 'So \\boxed{2}.', 'problem_source': 'math'}
REASONING = GENERATED | {'pass_rate_72b_tir': 'n/a', 'inference_mode': 'cot', 'used_in_kaggle': True}
# Name -> (rows as the data set has them; (question, solution, answer) of the examples; what is left out)
ROWS = {
  'metamathqa': (
    [
      {'type': 'GSM_SV', 'query': '1 + 1 = ?', 'original_question': 'q', 'response': 'Two.\n#### 2\nThe answer is: 2'},
      {'type': 'MATH_FOBAR', 'query': 'x?', 'original_question': 'q', 'response': 'So x is.\nThe answer is: $1,5$.'},
    ],
    [('1 + 1 = ?', 'Two.\n#### 2\nThe answer is: 2', '2'), ('x?', 'So x is.\nThe answer is: $1,5$.', '$1,5$')],
    {},
  ),
  'numinamath-cot': (
    [
      NUMINA
      | {'messages': [{'role': 'user', 'content': '1 + 1 = ?'}, {'role': 'assistant', 'content': 'So \\boxed{2}'}]}
    ],
    [('1 + 1 = ?', 'So \\boxed{2}', '2')],
    {},
  ),
  'numinamath-1.5': (
    [
      NUMINA | {'answer': '2', 'problem_is_valid': 'Yes', 'solution_is_valid': 'Yes'},
      NUMINA | {'answer': 'proof', 'problem_is_valid': 'Yes', 'solution_is_valid': 'Yes', 'problem': 'Prove it.'},
      NUMINA | {'answer': '2', 'problem_is_valid': 'Yes', 'solution_is_valid': 'Incomplete'},
      NUMINA | {'answer': '2', 'problem_is_valid': 'Yes', 'solution_is_valid': 'Yes', 'solution': None},
    ],
    [('1 + 1 = ?', 'Two, $\\boxed{2}$.', '2'), ('Prove it.', 'Two, $\\boxed{2}$.', '')],
    {'unverified': 1, 'malformed': 1},
  ),
  'openmathinstruct-2': ([GENERATED | {'expected_answer': '2'}], [('1 + 1 = ?', 'So \\boxed{2}.', '2')], {}),
  'openmathreasoning': (
    [
      REASONING | {'expected_answer': '2', 'problem_type': 'has_answer_extracted'},
      REASONING | {'expected_answer': 'n/a', 'problem_type': 'converted_proof', 'problem': 'Prove it.'},
    ],
    [('1 + 1 = ?', 'So \\boxed{2}.', '2'), ('Prove it.', 'So \\boxed{2}.', '')],
    {},
  ),
  'openr1-math-220k': (
    [
      OPENR1,
      OPENR1 | {'problem': 'b', 'correctness_math_verify': [False] * 4, 'correctness_llama': None},
      OPENR1 | {'problem': 'c', 'correctness_math_verify': [True]},
    ],
    [('1 + 1 = ?', OPENR1['generations'][0], '2'), ('1 + 1 = ?', OPENR1['generations'][3], '2')],
    {'unverified': 1, 'malformed': 1},
  ),
  'deepmath-103k': (
    [
      {'question': '1 + 1 = ?', 'final_answer': '2', 'difficulty': 3.0, 'topic': 'Algebra', 'r1_solution_1': 'a',
       'r1_solution_2': 'b', 'r1_solution_3': '', 'r1_solution_4': 'd'},
    ],
    [('1 + 1 = ?', text, '2') for text in 'abd'],
    {},
  ),
  'orca-math': (
    [{'question': '1 + 1 = ?', 'answer': 'Add them:\nit is 2.'}],
    [('1 + 1 = ?', 'Add them:\nit is 2.', '')],
    {},
  ),
  'dapo-math-17k': (
    [
      {'data_source': 'math_dapo', 'prompt': [{'content': DAPO, 'role': 'user'}], 'ability': 'MATH',
       'reward_model': {'ground_truth': '2', 'style': 'rule-lighteval/MATH_v2'}, 'extra_info': {'index': 'a-b'}},
    ] * 2 + [{'prompt': 'And $2$?', 'solution': '3', 'reward_model': {'ground_truth': '3'}}],
    [('What is $1 + 1$?', '2', '2'), ('And $2$?', '3', '3')],
    {'duplicate': 1},
  ),
}  # fmt: skip


@pytest.fixture
def on_the_hub(tmp_path, monkeypatch):
  """put(rows, split, front) -> the folder that the hub gives; `put.asked` has the names that were asked for."""
  huggingface_hub = pytest.importorskip('huggingface_hub')

  def put(rows, split='train', **front):
    put.asked, put.revisions = [], []
    write_lines(tmp_path / 'data' / f'{split}-0.jsonl', *rows)
    front |= {'configs': [{'config_name': 'default', 'data_files': [{'split': split, 'path': f'data/{split}-*'}]}]}
    (tmp_path / 'README.md').write_text(f'---\n{json.dumps(front)}\n---\n')
    return tmp_path

  def snapshot(name, allow_patterns, **options):
    put.asked.append(name)
    put.revisions.append(options.get('revision'))
    return str(tmp_path)

  (tmp_path / 'data').mkdir()
  monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot)
  return put


def test_every_named_set_has_rows_here():
  assert list(ROWS) == published.names()


@pytest.mark.parametrize('name', ROWS)
def test_rows_of(name, on_the_hub, capsys):
  rows, wanted, left_out = ROWS[name]
  known = published.find(name)
  folder = on_the_hub(rows, known.split, license=known.licence)
  for source in (name, f'hf:{known.hub}', f'hf://{known.hub}'):
    examples, report = load(source)
    assert [(e.question, e.solution, e.answer) for e in examples] == wanted
    assert dict(report.counts) == left_out
  assert on_the_hub.asked == [known.hub] * 3
  about = '' if known.revision else 'about '
  assert f'{known.hub}: licence {known.licence}, {about}{known.rows:,} rows\n' in capsys.readouterr().err
  assert on_the_hub.revisions == [known.revision or None] * 3

  # A copy is read in the same way, and no two examples of it have the same place.
  copy = list(stream(str(folder / 'data'), report := Report(), known.split))
  assert {(e.question, e.solution, e.answer) for e in copy} == set(wanted)
  assert len({e.where for e in copy}) == len(copy) and report.counts['malformed'] == left_out.get('malformed', 0)


@pytest.mark.parametrize(
  'source, name',
  [
    ('metamathqa', 'meta-math/MetaMathQA'),
    ('meta-math/MetaMathQA', 'meta-math/MetaMathQA'),
    ('hf:openai/gsm8k', 'openai/gsm8k'),
    ('hf://openai/gsm8k/socratic@main', 'openai/gsm8k'),
    ('hf:openai/gsm8k?non_commercial=yes', 'openai/gsm8k'),
    ('hf:some/rows', None),
    ('openai/gsm8k/train.jsonl', None),  # a file
  ],
)
def test_the_origin_of_a_name_whose_files_are_not_found_yet(source, name):
  assert origins.of(source) == ({'name': name, 'licence': 'mit'} if name else {})


def test_gsm8k_on_the_hub_is_its_main_configuration(on_the_hub, tmp_path):
  configs = [
    {'config_name': name, 'data_files': [{'split': 'train', 'path': f'{name}.jsonl'}]} for name in ('main', 'socratic')
  ]
  on_the_hub([{}])
  (tmp_path / 'README.md').write_text(f'---\n{json.dumps({"configs": configs})}\n---\n')
  for name in ('main', 'socratic'):
    write_lines(tmp_path / f'{name}.jsonl', {'question': name, 'answer': '#### 1'})
  for source, question in {'hf:openai/gsm8k': 'main', 'hf:openai/gsm8k/socratic': 'socratic'}.items():
    files.check_scheme(source, may_be_on_hub=True)  # as for every setting that names a data set
    assert load(source)[0][0].question == question


@pytest.mark.parametrize(
  'front, line',
  [
    ({'license': 'cc-by-nc-4.0'}, None),
    ({'license': ['apache-2.0', 'cc-by-nc-sa-4.0']}, None),
    ({'license': 'other', 'license_name': 'research-non-commercial'}, None),
    ({'license': 'other', 'license_name': 'agency-license'}, 'licence agency-license\n'),
    ({'license': ['mit', 'cc-by-4.0']}, 'licence mit, cc-by-4.0\n'),
    ({}, 'licence not stated\n'),
  ],
)
def test_licences_that_forbid_commercial_use(front, line, on_the_hub, capsys):
  on_the_hub([{'question': '1+1=', 'answer': '2'}], **front)
  if line is None:
    with pytest.raises(UserError, match=r'hf:some/rows has the licence .*name it hf:some/rows\?non_commercial=yes'):
      load('hf:some/rows')
    line = 'hf:some/rows?non_commercial=yes'
    assert len(load(line)[0]) == 1 and 'some/rows: licence ' in capsys.readouterr().err
  else:
    load('hf:some/rows')
    assert f'some/rows: {line}' in capsys.readouterr().err


def test_a_known_licence_is_looked_at_before_anything_is_fetched(on_the_hub, monkeypatch):
  on_the_hub([{'question': '1+1=', 'answer': '2'}])
  monkeypatch.setattr(published, 'SETS', (published.PublishedSet('mine', 'some/rows', 'cc-by-nc-4.0', 1, ''),))
  with pytest.raises(UserError, match='name it mine.non_commercial=yes'):
    hub_sets.data_files('mine', 'train')
  assert on_the_hub.asked == []
  assert len(load('mine?non_commercial=yes')[0]) == 1


def test_the_revision_that_was_fetched_is_said_and_recorded(on_the_hub, tmp_path, monkeypatch, capsys):
  """In the layout of the hub's cache: a folder named after the commit."""
  commit = 'ab' * 20
  snapshot = tmp_path / 'datasets--some--rows' / 'snapshots' / commit
  snapshot.mkdir(parents=True)
  write_lines(snapshot / 'train.jsonl', *({'question': f'{n}+1=', 'answer': f'{n + 1}'} for n in range(9)))
  (snapshot / 'README.md').write_text('---\nlicense: cc-by-4.0\n---\n')
  monkeypatch.setattr(hub_sets.hub, 'fetch_data', lambda name, revision: str(snapshot))
  data = TrainingData(DataConfig(sources=('hf:some/rows@v2',), seq_len=64, batch_size=2), load_tokenizer())
  wanted = {'name': 'some/rows', 'revision': commit, 'licence': 'cc-by-4.0'}
  assert data.origins == {'hf:some/rows@v2': wanted}  # what WORKDIR/sessions.jsonl has
  assert load('hf:some/rows@v2')[1].origin == wanted
  assert f'some/rows: licence cc-by-4.0, revision {commit}\n' in capsys.readouterr().err


def test_openmathinstruct_1(tmp_path):
  """Known by its columns."""
  row = {'question': '1+1=', 'generated_solution': 'So \\boxed{2}', 'expected_answer': '2', 'predicted_answer': '2'}
  marks = (True, 'True', None, False, 'False', 0)
  rows = [row | {'question': f'{number}+1=', 'is_correct': mark} for number, mark in enumerate(marks)]
  kept, report = load(str(write_lines(tmp_path / 'a.jsonl', *rows, GENERATED | {'is_correct': False})))
  assert [(e.question, e.solution, e.answer) for e in kept] == [(f'{n}+1=', 'So \\boxed{2}', '2') for n in range(3)]
  assert report.counts == {'unverified': 4} and report.rows['unverified'][0][1] == 'is_correct is False'


def test_a_file_of_which_no_row_is_verified(tmp_path):
  """One of many files may be so, and the others are read."""
  row = NUMINA | {'answer': '2', 'problem_is_valid': 'Yes', 'solution_is_valid': 'No'}
  path = write_lines(tmp_path / 'a.jsonl', row, row)
  assert list(stream(str(path), report := Report())) == []
  assert dict(report.counts) == {'unverified': 2}
