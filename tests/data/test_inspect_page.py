"""`data inspect --page` in a real browser, of rows that try to leave the page, and of a folder that was cleaned."""

import json
import re

import pytest
from json_lines import write_lines

from mathqwen import cli
from mathqwen.data import inspect_page
from mathqwen.data.training_data import TrainingData
from mathqwen.data_config import DataConfig
from mathqwen.text.loading import load_tokenizer

EVIL = 'Is </script><script>document.title = "out"</script> <img src=x onerror=alert(1)> 3 < 5 & $7?'
HIT = {
  'kind': 'exact',
  'test_set': 'math',
  'id': 'test/algebra/1.json',
  'question': EVIL,
  'rows': 2,
  'shown': [{'where': 'a.jsonl:7', 'share': 1.0, 'question': f'row {EVIL}'}],
}


@pytest.fixture(scope='module')
def page(tmp_path_factory):
  """The page of one source of a cleaned folder: 3 examples, a duplicate, a test problem, and a malformed row."""
  folder = tmp_path_factory.mktemp('cleaned')
  rows = [{'question': question, 'answer': f'It is {question}5.\n#### 5'} for question in (EVIL, EVIL + EVIL, 'What?')]
  write_lines(folder / '00-a' / 'train-0.jsonl', *rows, {'question': 'no answer'})
  left_out = {'near_duplicate': {'count': 1, 'rows': [['a.jsonl:9', 'similarity 0.9']]}}
  entry = {'source': 'a.jsonl', 'folder': '00-a', 'left_out': left_out}
  (folder / 'report.json').write_text(json.dumps({'sources': [entry], 'contamination': [HIT]}))
  line = {'source': 'a.jsonl', 'where': 'a.jsonl:9', 'reason': 'near_duplicate', 'detail': 'similarity 0.9'}
  write_lines(
    folder / 'left_out.jsonl', line | {'of': 'a.jsonl a.jsonl:1', 'question': EVIL, 'of_question': 'kept one'}
  )
  words = ['data', 'inspect', 'gsm8k_small', '--page', str(folder / 'page.html')]
  settings = {'data.sources': folder / '00-a', 'data.seq_len': 512, 'data.eval_examples': 0}
  for name, value in settings.items():
    words += ['--set', f'{name}={value}']
  assert cli.main(words) == 0
  return (folder / 'page.html').read_text()


def test_packed_rows_are_those_of_training(tmp_path):
  for name, count in (('a', 6), ('b', 2)):
    write_lines(tmp_path / f'{name}.jsonl', *({'question': f'{name}{i}?', 'answer': f'{i}'} for i in range(count)))
  sources = tuple(str(tmp_path / f'{name}.jsonl') for name in 'ab')
  cfg = DataConfig(sources=sources, epochs=(0.5, 3), seq_len=64, batch_size=2, eval_examples=0)
  data = TrainingData(cfg, load_tokenizer())
  batches = data.train()
  names = [name for row in batches.examples(batches.get_state()) for name in row]
  batches.close()
  shown = [segment['name'] for row in inspect_page._packed(data)[: cfg.batch_size] for segment in row[4]['segments']]
  assert shown == names


def test_only_a_path_has_the_report_of_a_cleaning(tmp_path, capsys):
  """Names of data sets have none; a damaged report is named, not passed over."""
  assert [inspect_page._Cleaned(name).folder for name in ('gsm8k', 'hf:openai/gsm8k', 'tfds:gsm8k')] == [None] * 3
  for text, said in (('{"sources": [', 'report.json cannot be read'), ('{"sources": 3}', '')):
    (tmp_path / 'report.json').write_text(text)
    assert inspect_page._Cleaned(str(tmp_path / '00-a')).folder is None
    err = capsys.readouterr().err
    assert said in err and bool(err) == bool(said)


OPEN = """
  const heads = () => all('#items li > button').map((node) => node.textContent);
  const pick = async (name) => { $(`input[value=${name}]`).click(); await pause(20); };
  const counts = () => Object.fromEntries(all('fieldset span').map((node) => [node.id, Number(node.textContent)]));
"""


def test_rows_are_shown_as_text_and_can_be_opened(page, see):
  assert not re.search(r'https?:|url\(|@import|<link', page.partition('<main>')[0].replace('http-equiv', ''))
  seen = see(
    page,
    OPEN
    + """
  seen.push(counts());
  $('#items li > button').focus(); $('#items li > button').click();
  seen.push($('.detail .said').textContent, $('.detail mark').textContent);
  $('.detail .small').click();
  seen.push(all('.detail .token').map((node) => node.textContent).join(''), all('.detail .token.loss').length);
  key('ArrowDown'); seen.push(document.activeElement === all('#items li > button')[1]);
  await pick('duplicate'); $('#items li > button').click(); seen.push($('.detail').textContent);
  await pick('left_out'); seen.push(heads());
  choose('#set', '1'); await pick('test'); $('#items li > button').click(); seen.push($('.detail').textContent);
  await pick('packed'); $('#items li > button').click();
  seen.push(all('.packed i').length, document.title, all('img').length);
  """,
  )
  counts, text, learnt, tokens, with_loss, moved, duplicate, left_out, hit, segments, title, images = seen
  assert counts == dict(zip(counts, (5, 3, 0, 1, 1, 0), strict=True))
  assert EVIL in text and learnt == f'It is {EVIL}5.\n#### 5<|im_end|>'
  assert tokens.replace('↵', '') == text and with_loss > 50 and moved
  assert EVIL in duplicate and 'kept one' in duplicate and 'Kept: a.jsonl a.jsonl:1' in duplicate
  assert len(left_out) == 1 and 'malformed' in left_out[0]
  assert f'row {EVIL}' in hit and '2 rows' in hit
  assert segments >= 1 and title.startswith('Data: ') and images == 0


@pytest.mark.parametrize(('width', 'dark'), [(1280, False), (420, True)])
def test_nothing_overlaps_or_is_wider_than_the_window(page, see, width, dark):
  steps = """
  $('#items li > button').click();
  const right = (node) => node.getBoundingClientRect().right;
  const wide = all('main *').filter((node) => !node.closest('.wide, .said') && right(node) > innerWidth + 1);
  const pairs = all('.bars li').filter((row) => {
    const [label, track, value] = [...row.children].map((node) => node.getBoundingClientRect());
    return !(label.right <= track.left + 1 || label.bottom <= track.top + 1) || track.right > value.left + 1;
  });
  seen.push(wide.map((node) => node.className), pairs.length, all('.bars li').length > 0);
  """
  assert see(page, steps, width=width, dark=dark) == [[], 0, True]
