"""From prompts to scores with a model that recites its answers, and what is refused before anything is generated."""

import json
from pathlib import Path

import pytest
from reciting import evaluate, lines

from mathqwen.errors import UserError
from mathqwen.evals import records, run


def test_evaluate(reciting, data_dir, tmp_path):
  result = evaluate(reciting(), tmp_path / 'out', data_dir, batch_size=3)
  scores = result['benchmarks']['arithmetic']
  wanted = {'n': 4, 'correct': 3, 'accuracy': 0.75, 'unextractable': 1, 'truncated': 0, 'rule': 'math401'}
  wanted |= {'prompt': 'chatml', 'model': 'reciting', 'dtype': 'float32', 'resumed': 0, 'limit': None}
  assert {key: scores[key] for key in wanted} == wanted
  assert scores['by_group']['add'] == {'n': 2, 'correct': 1, 'accuracy': 0.5}
  assert scores['decoding'] == {
    'temperature': 0.0, 'top_p': 1.0, 'top_k': 0, 'seed': 0, 'cache_dtype': None, 'max_new_tokens': 64, 'batch_size': 3
  }  # fmt: skip
  assert scores['tokens'] == sum(row['tokens'] for row in lines(tmp_path / 'out'))
  assert result['tokens_per_second'] > 0
  assert json.loads((tmp_path / 'out' / 'arithmetic' / 'scores.json').read_text()) == scores


def test_a_record(reciting, data_dir, tmp_path):
  evaluate(reciting(), tmp_path, data_dir)
  rows = lines(tmp_path)
  assert [row['question'] for row in rows] == ['1+1=', '2*3=', '1-5=', '7/2=']  # in the benchmark's order
  first = rows[0]
  assert tuple(first)[: len(records.FIELDS)] == records.FIELDS
  assert first['prompt'] == '<|im_start|>user\n1+1=<|im_end|>\n<|im_start|>assistant\n'
  assert (first['response'], first['extracted'], first['gold'], first['correct']) == ('the answer is 2', '2', '2', True)
  assert (first['tokens'], first['truncated'], first['extra']['group']) == (16, False, 'add')
  assert rows[2]['reason'] == 'no answer found'


def test_nothing_is_written_without_out(reciting, data_dir, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  before = sorted(tmp_path.rglob('*'))
  assert evaluate(reciting(), None, data_dir)['benchmarks']['arithmetic']['correct'] == 3
  assert sorted(tmp_path.rglob('*')) == before


def test_truncated_answers(reciting, data_dir):
  model = reciting()
  model.answers |= {'1+1=': '2', '2*3=': '6'}
  scores = evaluate(model, None, data_dir, max_new_tokens=2)['benchmarks']['arithmetic']
  assert scores['truncated'] == 2  # '2' and its stop token fit


def test_limit_prompt_and_batch_size(reciting, data_dir):
  model = reciting()
  result = evaluate(model, None, data_dir, limit=3, prompt='qwen-chat', batch_size=2)
  assert result['benchmarks']['arithmetic']['n'] == 3
  assert result['benchmarks']['arithmetic']['prompt'] == 'qwen-chat'
  assert (model.asked, model.batch_size) == ([3], 2)


def test_answers_end_at_the_stop_texts_of_the_prompt(reciting, data_dir, tmp_path):
  model = reciting(positions=9000)
  model.answers = {'1+1=': '2\n\nQuestion: 3+3=', '2*3=': '6Question:', '1-5=': '-4 is right', '7/2=': '3.5'}
  scores = evaluate(model, tmp_path, data_dir, prompt='qwen-base', max_new_tokens=8)['benchmarks']['arithmetic']
  rows = lines(tmp_path)
  assert [row['response'] for row in rows] == ['2', '6Questio', '-4 is ri', '3.5']
  assert [row['truncated'] for row in rows] == [False, True, True, False]
  assert (scores['correct'], scores['truncated'], scores['prompt'], scores['rule']) == (4, 2, 'qwen-base', 'math401')
  assert rows[0]['prompt'].endswith("\n\nQuestion: 1+1=\nLet's think step by step\n") and rows[0]['tokens'] == 8
  assert {(row['prompt_name'], row['rule']) for row in rows} == {('qwen-base', 'math401')}


@pytest.mark.parametrize(
  'prompt, rule, wanted, new_tokens, stop',
  [
    (None, None, 'number', 512, ()),
    (None, 'rft', 'rft', 512, ()),
    ('alpaca', None, 'rft', 256, ()),
    ('wizardmath', None, 'wizardmath-gsm8k', 1024, ('Instruction', 'Response')),
    ('abel', 'number', 'number', 2048, ()),
    ('minerva', None, 'number', 512, ('Problem:',)),  # Minerva has no rule of its own for GSM8K
  ],
)
def test_a_prompt_sets_the_rule_and_the_limits_of_its_system(
  reciting, tmp_path, prompt, rule, wanted, new_tokens, stop
):
  (tmp_path / 'gsm8k').mkdir()
  (tmp_path / 'gsm8k' / 'test.jsonl').write_text('{"question": "1+1=", "answer": "It is 2.\\n#### 2"}\n')
  model = reciting(positions=9000)
  with run.prepare(model, 'gsm8k', run.Ask(str(tmp_path), prompt=prompt, rule=rule)) as [(job, _)]:
    assert (job.settings['rule'], job.settings['max_new_tokens'], job.stop) == (wanted, new_tokens, stop)
  scores = evaluate(model, None, str(tmp_path), 'gsm8k', prompt=prompt, rule=rule)
  assert scores['benchmarks']['gsm8k']['rule'] == wanted


@pytest.mark.parametrize('row', ['{"prompt": "1+1=", "completion": "2"}', '{"query": "1+1="}', '[]', '{"query"'])
def test_a_benchmark_of_the_wrong_schema_is_named(reciting, data_dir, tmp_path, row):
  path = Path(data_dir) / 'arithmetic' / 'test.jsonl'
  path.write_text(path.read_text() + row + '\n')
  model = reciting()
  with pytest.raises(UserError, match=r'arithmetic/test.jsonl:5: '):
    evaluate(model, tmp_path / 'out', data_dir)
  assert sum(model.asked) == 0 and not (tmp_path / 'out').exists()


def test_gold_answers_that_are_not_numbers(reciting, data_dir):
  path = Path(data_dir) / 'arithmetic' / 'test.jsonl'
  path.write_text(path.read_text().replace('"3.5"', '"two"'))
  with pytest.raises(UserError, match=r"1 gold answers are not numbers, such as 'two' \(test.jsonl:4\): correct them"):
    evaluate(reciting(), None, data_dir)
  assert evaluate(reciting(), None, data_dir, rule='math')['benchmarks']['arithmetic']['n'] == 4


def test_repeated_problems_are_reported(reciting, data_dir, capsys):
  path = Path(data_dir) / 'arithmetic' / 'test.jsonl'
  path.write_text(path.read_text() * 2)
  assert evaluate(reciting(), None, data_dir)['benchmarks']['arithmetic']['n'] == 8
  line = next(line for line in capsys.readouterr().err.splitlines() if 'duplicate' in line)
  assert line.startswith('arithmetic: 4 duplicate: test.jsonl:5 (same as test.jsonl:1), ')
  assert line.endswith('; each is asked, as published')


@pytest.mark.parametrize(
  'names, kwargs, message',
  [
    ('arithmetic,gsm8', {}, "unknown benchmark 'gsm8'"),
    ([], {}, 'no benchmark given'),
    ('arithmetic', {'prompt': 'vicuna'}, "unknown prompt 'vicuna'"),
    ('arithmetic', {'rule': 'abl'}, "unknown rule 'abl'; did you mean 'abel'"),
    ('arithmetic', {'limit': 0}, 'limit is 0; it must be 1 or more'),
    ('arithmetic', {'batch_size': 0}, 'batch_size is 0; it must be 1 or more'),
    ('arithmetic', {'max_new_tokens': 500}, 'it passes the 512 positions; at most 489 fit'),
  ],
)
def test_bad_arguments_are_refused_before_anything_is_generated(reciting, data_dir, tmp_path, names, kwargs, message):
  model = reciting()
  with pytest.raises(UserError, match=message):
    evaluate(model, tmp_path / 'out', data_dir, names, **kwargs)
  assert sum(model.asked) == 0 and not (tmp_path / 'out').exists()


@pytest.mark.parametrize('prompt', ['chatml', 'minerva'])
def test_a_model_without_a_tokenizer(reciting, data_dir, prompt):
  model = reciting()
  model.tokenizer = None
  with pytest.raises(UserError, match='reciting has no tokenizer files: copy those of its model there'):
    evaluate(model, None, data_dir, prompt=prompt)


def test_room_for_the_prompt(reciting, data_dir, capsys):
  with pytest.raises(UserError, match='has 23 tokens, the model has 23 positions'):
    evaluate(reciting(positions=23), None, data_dir)
  scores = evaluate(reciting(positions=43), None, data_dir)['benchmarks']['arithmetic']
  assert scores['decoding']['max_new_tokens'] == 20
  assert 'answers end after 20 new tokens instead of 64' in capsys.readouterr().err


def test_progress_goes_to_standard_error(reciting, data_dir, capsys):
  run.evaluate(reciting(), ['arithmetic'], run.Ask(data_dir), progress=True)
  message = capsys.readouterr()
  assert message.out == ''
  assert '4/4' in message.err and '75.0% right' in message.err and 'problems/s' in message.err


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'samples': 0}, 'samples is 0'),
    ({'samples': 10_000_000, 'temperature': 1.0}, 'samples is 10000000; it must be from 1 to 10,000'),
    ({'samples': 2}, '2 samples at temperature 0'),
    ({'temperature': -1.0}, 'temperature -1.0'),
    ({'temperature': float('nan')}, 'temperature nan'),
    ({'temperature': 1.0, 'top_p': 2.0}, 'top_p 2.0'),
    ({'temperature': 1.0, 'top_k': -1}, 'top_k -1'),
    ({'top_k': 5}, 'top_p and top_k have no effect at temperature 0'),
    ({'seed': -1}, 'seed is -1'),
  ],
)
def test_decoding_is_refused_before_anything_is_read(settings, message):
  with pytest.raises(UserError, match=message):
    run.Decoding(**settings)


ALGEBRA = [(f'Is {i} even?', str(i), 'Algebra' if i < 60 else 'Geometry', 1 + i % 5) for i in range(120)]


def test_a_limit_draws_a_fixed_random_subset(reciting, tmp_path):
  """Not the first: the problems of MATH stand by subject. Each run draws the same, whatever the order of the file."""
  answers = {question: f'\\boxed{{{answer}}}' for question, answer, _, _ in ALGEBRA}
  found = {}
  for order in (1, -1):
    folder = tmp_path / str(order) / 'math'
    folder.mkdir(parents=True)
    rows = [
      json.dumps({'problem': q, 'answer': a, 'solution': a, 'subject': s, 'level': n, 'unique_id': q}) + '\n'
      for q, a, s, n in ALGEBRA[::order]
    ]
    (folder / 'test500.jsonl').write_text(''.join(rows))
    for limit, seed in ((30, 0), (60, 0), (30, 7)):
      model, out = reciting(positions=9000), tmp_path / f'out{order}-{limit}-{seed}'
      model.answers = answers
      scores = evaluate(model, out, str(folder.parent), 'math500', limit=limit, limit_seed=seed)['benchmarks'][
        'math500'
      ]
      rows = [json.loads(line) for line in (out / 'math500' / 'records.jsonl').read_text().splitlines()]
      found[order, limit, seed] = {row['question'] for row in rows}
      places = [order * int(row['gold']) for row in rows]
      assert places == sorted(places) and (scores['limit'], scores['limit_seed'], scores['n']) == (limit, seed, limit)
      groups = {name: counts['n'] for name, counts in scores['by_group'].items()}
      wanted = {}
      for question, _, subject, level in ALGEBRA:
        if question in found[order, limit, seed]:
          for group in (subject, f'Level {level}'):
            wanted[group] = wanted.get(group, 0) + 1
      assert groups == wanted and min(groups['Algebra'], groups['Geometry']) >= limit / 4
  assert found[1, 30, 0] == found[-1, 30, 0] and found[1, 30, 0] < found[1, 60, 0]
  assert found[1, 30, 0] != found[1, 30, 7]


def test_a_limit_of_an_older_version_is_named(reciting, data_dir, tmp_path):
  evaluate(reciting(), tmp_path, data_dir, limit=3)
  path = tmp_path / 'arithmetic' / 'settings.json'
  settings = json.loads(path.read_text())
  del settings['limit_seed']
  path.write_text(json.dumps(settings))
  with pytest.raises(UserError, match="holds another run .limit_seed 'the first problems' there and 0 now.; give"):
    evaluate(reciting(), tmp_path, data_dir, limit=3)
  path.write_text(json.dumps(settings | {'limit': None}))  # a whole benchmark is what it was
  with pytest.raises(UserError, match=r'another run \(limit None there and 3 now, limit_seed None there and 0 now\)'):
    evaluate(reciting(), tmp_path, data_dir, limit=3)
  with pytest.raises(UserError, match='limit_seed is 4, and no limit is given'):
    run.Ask(limit_seed=4)
