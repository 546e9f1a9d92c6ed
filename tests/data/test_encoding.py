"""Examples as ids: what is left out and reported, and what is held out of training."""

import numpy as np
import pytest
from encoded_sums import T, encode, example, sums

from mathqwen.chat import chatml
from mathqwen.chat.chat_format import ChatFormat
from mathqwen.data import encoding
from mathqwen.data.holding_out import hold_out
from mathqwen.errors import UserError
from mathqwen.text.loading import load_tokenizer
from mathqwen.text.testing import tiny_bpe_tokenizer


@pytest.mark.parametrize('tokenizer', [load_tokenizer(), tiny_bpe_tokenizer()], ids=['packaged', 'bpe'])
def test_encoded_rows_are_rendered_rows(tokenizer):
  examples = [
    *sums(5),
    example(
      5,
      'q',
      'a',
      (
        {'role': 'user', 'content': 'x'},
        {'role': 'assistant', 'content': 'y'},
        {'role': 'user', 'content': 'z'},
        {'role': 'assistant', 'content': '!'},
      ),
    ),
  ]
  encoded, report = encoding.encode(examples, tokenizer, 128, ChatFormat(system_prompt='Be brief.'))
  assert len(encoded) == 6
  assert not report.counts
  for index in range(6):
    ids, mask = encoded[index]
    messages = examples[index].messages or [
      {'role': 'system', 'content': 'Be brief.'},
      {'role': 'user', 'content': examples[index].question},
      {'role': 'assistant', 'content': examples[index].solution},
    ]
    assert (ids.tolist(), mask.tolist()) == chatml.render(messages, tokenizer)
  assert (encoded.ids.dtype, encoded.mask.dtype, encoded.offsets.dtype) == (np.int32, np.uint8, np.int64)


def test_what_is_left_out_is_reported_by_line():
  user = {'role': 'user', 'content': 'a'}
  examples = [
    example(0, 'a', 'b'),
    example(1, 'a' * 9999, 'b'),
    example(2, 'a', 'b'),
    example(3, '', '', (user,)),
    example(4, '', '', ({'role': 'tool', 'content': 'a'},)),
    example(5, 'a', 'c'),
  ]
  encoded, report = encoding.encode(examples, load_tokenizer(), T)
  assert len(encoded) == 2
  assert dict(report.counts) == {'malformed': 1, 'too_long': 1, 'duplicate': 1, 'no_loss_token': 1}
  assert {kind: rows[0][0] for kind, rows in report.rows.items()} == {
    'malformed': 'x.jsonl:5',
    'too_long': 'x.jsonl:2',
    'duplicate': 'x.jsonl:3',
    'no_loss_token': 'x.jsonl:4',
  }
  assert report.rows['duplicate'][0][1] == 'same as x.jsonl:1'


def test_encoding_in_chunks_changes_nothing(monkeypatch):
  examples = [*sums(5), *sums(3), *sums(4, start=5)]  # duplicates of earlier chunks
  at_once, report = encoding.encode(examples, load_tokenizer(), T)
  monkeypatch.setattr(encoding, 'CHUNK', 2)
  in_chunks, other = encoding.encode(examples, load_tokenizer(), T)
  assert report.lines() == other.lines() and report.counts == {'duplicate': 3}
  for field in ('ids', 'mask', 'offsets'):
    np.testing.assert_array_equal(getattr(at_once, field), getattr(in_chunks, field))


def test_the_longest_row_that_fits_is_kept():
  rows = [example(0, 'a', 'b' * 40)]
  need = len(encode(rows, 9999)[0][0]) - 1
  assert len(encode(rows, need)) == 1
  with pytest.raises(UserError, match=rf'1 too_long: x\.jsonl:1 \({need} positions, seq_len is {need - 1}\)'):
    encode(rows, need - 1)


def test_held_out_prompts_are_not_in_training():
  examples = [example(10 * i + j, f'{i} + 1 =', f'way {j}: {i + 1}') for i in range(20) for j in range(3)]
  encoded = encode(examples)
  (training,), held = hold_out([encoded], 5, seed=1)

  def prompts(part):
    return [part[i][0][: part[i][1].argmax()].tobytes() for i in range(len(part))]

  assert (len(training), len(held)) == (45, 5)
  assert training.offsets.dtype == held.offsets.dtype == np.int64  # there may be more than 2**31 ids
  assert len(set(prompts(held))) == 5
  assert not set(prompts(held)) & set(prompts(training))
  again, other = (prompts(hold_out([encoded], 5, seed=seed)[1]) for seed in (1, 2))
  assert again == prompts(held) != other
  with pytest.raises(UserError, match='20 different prompts'):
    hold_out([encoded], 20, seed=0)
  with pytest.raises(UserError, match='leave a source without any'):  # the other source has more
    hold_out([encoded, encode(sums(1, start=90))], 20, seed=0)


def test_prompts_held_out_of_one_source_leave_the_others_too():
  answers = [
    encode([example(i, f'{i} + 1 =', f'{way} {i + 1}') for i in range(start, 30)])
    for way, start in (('so', 0), ('thus', 10))
  ]
  training, held = hold_out(answers, 12, seed=0)

  def prompts(part):
    return {part[i][0][: part[i][1].argmax()].tobytes() for i in range(len(part))}

  assert len(held) == len(prompts(held)) == 12
  assert len(training[0]) == 18
  assert [prompts(part) for part in training] == [prompts(part) - prompts(held) for part in answers]


def test_one_bad_row_does_not_render_all_others_alone(monkeypatch):
  render, batches = chatml.render_batch, []

  def counting(conversations, tokenizer):
    batches.append(len(conversations))
    return render(conversations, tokenizer)

  monkeypatch.setattr(chatml, 'render_batch', counting)
  examples = sums(64)
  examples[40] = example(40, 'half a pair \ud800', '1')
  encoded, report = encoding.encode(examples, load_tokenizer(), T)
  assert len(encoded) == 63 and report.lines()[0].startswith('1 malformed: ')
  assert len(batches) == 1 + 2 * 6  # both halves of 64, 32, ..., 2
