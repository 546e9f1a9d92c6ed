"""Shards on disk: the batches of the same rows in memory, and one line for each thing that can be wrong with them."""

import errno
import json
import resource
import shutil
import signal

import numpy as np
import pytest
from encoded_sums import T, encode, example, sums
from json_lines import write_lines
from train_batches import train_batches

from mathqwen.chat.chat_format import ChatFormat
from mathqwen.cli import main
from mathqwen.config import DataConfig
from mathqwen.data import packing, pipeline, prompts, shard_card, shards
from mathqwen.data.holding_out import by_order, hold_out
from mathqwen.data.left_out import Report
from mathqwen.data.shard_reader import Shards
from mathqwen.data.training_data import TrainingData
from mathqwen.errors import UserError
from mathqwen.text.loading import load_tokenizer

# 24 questions with three answers each, so that prompts are shared, also across shards.
EXAMPLES = encode([example(24 * way + i, f'{i}+1=', f'way {way}: {i + 1}') for way in range(3) for i in range(24)])


def write(folder, source=EXAMPLES, chat=None, **settings):
  with shards.Writer(folder, load_tokenizer(), chat or ChatFormat(), T, **settings) as writer:
    for i in range(len(source)):
      writer.add(*source[i], source.where[i], 'sums')
  return str(folder)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Several shards of EXAMPLES. To be copied, not changed."""
  return write(tmp_path_factory.mktemp('shards') / 'several', shard_bytes=2000)


def files_of(folder):
  return [shard[part]['file'] for shard in Shards(folder).card['shards'] for part in ('data', 'prompts')]


def taken(sources, weights=(), steps=12, shard=(0, 1), state=None):
  """The next batches, their digest, the examples of the first one, and the state after them."""
  batches = train_batches(sources, weights, 4, T, 3, shard)
  if state:
    batches.set_state(state)
  names = batches.examples(batches.get_state())
  found = [(next(batches), batches.digest) for _ in range(steps)]
  state = json.loads(json.dumps(batches.get_state()))
  batches.close()
  return [batch for batch, _ in found], [digest for _, digest in found], names, state


def test_what_was_added_is_read(folder):
  read = Shards(folder)
  assert len(read.card['shards']) > 2
  for name in ('positions', 'loss_tokens', 'longest', '__len__'):
    ours, theirs = getattr(read, name), getattr(EXAMPLES, name)
    assert (ours() if callable(ours) else ours) == (theirs() if callable(theirs) else theirs)
  order = np.random.default_rng(0).permutation(len(read)).tolist()
  for (ids, mask), index in zip(read.read(order), order, strict=True):
    assert (ids.dtype, mask.dtype) == (np.int32, np.uint8)
    np.testing.assert_array_equal(ids, EXAMPLES[index][0])
    np.testing.assert_array_equal(mask, EXAMPLES[index][1])
    assert read.where[index] == EXAMPLES.where[index]
  assert read.where[5:8] == EXAMPLES.where[5:8]
  with pytest.raises(IndexError):
    read[len(read)]


@pytest.mark.parametrize('weights', [(), (2, 1)])
def test_batches_are_those_of_the_same_rows_in_memory(folder, weights):
  """Of shards beside rows in memory; also when continued on two hosts."""
  other = encode(sums(20))
  in_memory, in_shards = [EXAMPLES, other], [Shards(folder), other]
  batches, digests, names, _ = taken(in_memory, weights)
  _, ours, named, _ = taken(in_shards, weights)
  assert ours == digests and named == names

  *_, state = taken(in_shards, weights, steps=5)
  halves = [taken(in_shards, weights, 7, (host, 2), state) for host in range(2)]
  assert [half[1] for half in halves] == [digests[5:]] * 2
  for expected, left, right in zip(batches[5:], halves[0][0], halves[1][0], strict=True):
    for name in packing.FEATURES:
      np.testing.assert_array_equal(np.concatenate([left[name], right[name]]), expected[name])


@pytest.mark.parametrize('n', [None, 5])
def test_held_out_prompts(folder, n):
  """The same, in the same order, as of these rows in memory; and none of them is in training."""
  other = encode([example(i, f'{i}+1=', 'so') for i in range(20, 40)])
  training, held = hold_out([Shards(folder), other], n, seed=1)
  in_memory, held_too = by_order([EXAMPLES, other], n, seed=1)
  assert len(held) == (n or 4) and held.where == held_too.where  # None: a tenth of 40
  np.testing.assert_array_equal(held.ids, held_too.ids)
  assert taken(training)[1:3] == taken(in_memory)[1:3]

  prompts_of = lambda part: [part[i][0][: part[i][1].argmax()].tobytes() for i in range(len(part))]
  held_prompts = set(prompts_of(held))
  assert len(held_prompts) == len(held)
  for source, left in zip([EXAMPLES, other], training, strict=True):
    kept = [i for i, prompt in enumerate(prompts_of(source)) if prompt not in held_prompts]
    copy = source.without(~np.isin(np.arange(len(source)), kept))
    assert prompts_of(left) == prompts_of(copy) and left.where[:] == copy.where
    assert (left.positions, left.loss_tokens) == (copy.positions, copy.loss_tokens)
  assert hold_out([Shards(folder), other], n, seed=2)[1].where != held.where
  with pytest.raises(UserError, match='leave a source without any: the data has 40 different prompts'):
    hold_out([Shards(folder), other], 40, seed=1)


def test_prompts_in_order_over_blocks(monkeypatch):
  """From any start, over the end, with prompts that fill several blocks: as a sorted list has them."""
  monkeypatch.setattr(prompts, 'BLOCK', 4)
  rng = np.random.default_rng(0)
  hashes = rng.choice(rng.integers(0, 2**64, 9, np.uint64), 60).tolist() + [7] * 11
  for size in (0, 1, 4, 71):
    parts = [prompts.InMemory(prompts.sorted_entries(hashes[:size])), prompts.InMemory(prompts.sorted_entries([9]), 71)]
    for start in (0, 8, *hashes[:3], 2**64 - 1):
      order = sorted({9, *hashes[:size]}, key=lambda prompt: (prompt - start) % 2**64)
      assert [prompts.first_prompts(parts, start, n) for n in (1, 3, 99)] == [order[:1], order[:3], order]
      for first in (order[:1], order[:3], order):
        found = [prompts.examples_of(part, start, first) for part in parts]
        assert found[1] == ({9: [71]} if 9 in first else {})
        places = {prompt: [i for i, known in enumerate(hashes[:size]) if known == prompt] for prompt in first}
        assert found[0] == {prompt: examples for prompt, examples in places.items() if examples}
    assert prompts.count(parts, 99) == len(order) and prompts.count(parts, 1) == 1


def data_of(*sources, **settings):
  return TrainingData(DataConfig(sources=sources, batch_size=4, **{'seq_len': T} | settings), load_tokenizer())


def test_the_start_reads_as_much_of_many_examples_as_of_few(tmp_path, monkeypatch):
  """Of the index of prompts a binary search, and of the examples those that are held out."""
  from mathqwen.data import shard_reader

  read = shard_reader._Files.read
  seen = []

  def counted(self, entry, numbers):
    seen.append(len(numbers))
    return read(self, entry, numbers)

  monkeypatch.setattr(shard_reader._Files, 'read', counted)
  monkeypatch.setattr(prompts, 'BLOCK', 16)
  taken_of = []
  for copies in (1, 40):
    source = encode([example(i, f'{i}+{copies}=', 'x') for i in range(72 * copies)])
    folder = write(tmp_path / str(copies), source)
    seen.clear()
    hold_out([Shards(folder)], 4, 3)
    taken_of.append(sum(seen))
  assert taken_of[1] <= taken_of[0] + 12  # there are 40 times as many examples, and blocks


def test_a_run_reads_shards_as_it_reads_files(folder, tmp_path):
  rows = [{'question': f'{i}+2=', 'answer': f'{i + 2}'} for i in range(30)]
  file = str(write_lines(tmp_path / 'a.jsonl', *rows))
  plain = data_of(file, eval_examples=0)
  (source,) = plain.sources
  report = Report()
  report.add('malformed', 'a.jsonl:31', 'not JSON')
  with shards.Writer(tmp_path / 'a', load_tokenizer(), plain.chat, T, about={'licence': 'MIT'}) as writer:
    for i in range(len(source)):
      writer.add(*source[i], source.where[i], file)
    writer.left_out[file] = report
  data = data_of(str(tmp_path / 'a'), eval_examples=0)
  assert Shards(tmp_path / 'a').card['about'] == {'licence': 'MIT'}
  assert next(plain.train())['tokens'].tolist() == next(data.train())['tokens'].tolist()
  (first, left_out, *_) = data.describe()
  assert first.endswith(plain.describe()[0].removeprefix(file)) and '1 malformed: a.jsonl:31 (not JSON)' in left_out
  with pytest.raises(UserError, match='1 of 31 rows cannot be trained on, and data.max_left_out is 0.01'):
    data_of(str(tmp_path / 'a'), max_left_out=0.01)
  held = data_of(str(tmp_path / 'a'), folder, eval_examples=6)
  assert len(held.held_out) == 6 and [batch['tokens'].shape for batch in held.eval()][0] == (4, T)
  fingerprint = held.fingerprint
  assert fingerprint['crc32'] == [Shards(tmp_path / 'a').card['fingerprint'], Shards(folder).card['fingerprint']]


SYSTEM = ChatFormat(system_prompt='Be brief.')
REFUSED = {
  'other system turn': ({}, SYSTEM, {}, "made with data.system_prompt='', and this run has 'Be brief.'"),
  'longer than the rows': ({'seq_len': 8}, None, {}, r'needs \d+ positions and data.seq_len is 8: set data.seq_len='),
  'other template': ({}, None, {'template_sha256': '0'}, 'made with the template chatml, and this run has another'),
  'other tokenizer': ({}, None, {'probe': '0', 'tokenizer': {'probe': '0'}}, 'made with another tokenizer'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_shards_that_do_not_fit_the_run(case, folder, tmp_path):
  settings, chat, changed, words = REFUSED[case]
  shutil.copytree(folder, tmp_path / 'a')
  card = json.loads((tmp_path / 'a' / 'card.json').read_text())
  card['made_with'] |= changed
  (tmp_path / 'a' / 'card.json').write_text(json.dumps(card))
  cfg = DataConfig(sources=(str(tmp_path / 'a'),), **{'seq_len': T} | settings)
  with pytest.raises(UserError, match=words) as caught:
    TrainingData(cfg, load_tokenizer(), chat=chat)
  assert '\n' not in str(caught.value) and str(tmp_path / 'a') in str(caught.value)


def test_made_by_the_command(tmp_path, capsys, fails):
  """What training would leave out is left out, and said; then everything but the audit takes them as a source."""
  pytest.importorskip('apache_beam', reason='the extra `beam` is not installed')
  rows = [{'question': f'{i}+2=', 'answer': f'{i + 2}'} for i in range(30)]
  file = str(write_lines(tmp_path / 'a.jsonl', *rows, rows[3], 'broken', {'question': '1', 'answer': 'x ' * 3000}))
  words = ['gsm8k_small', '--set', f'data.sources={file}', '--set=data.max_left_out=0.1', '--out', str(tmp_path / 'a')]
  words += ['--tokenizer', 'arithmetic', '--set=clean.answer=any', '--set=clean.repetitive=false']
  assert main(['data', 'clean', *words, '--json']) == 0
  said = capsys.readouterr().out
  assert '1 duplicate: a.jsonl:31' in said and '1 malformed: a.jsonl:32' in said
  assert '1 too_long: a.jsonl:33' in said and json.loads(said.splitlines()[-1])['shards']['examples'] == 30
  words = ['gsm8k_small', '--set', f'data.sources={tmp_path / "a"}', '--set=data.max_left_out=0.1']
  assert main(['data', 'inspect', *words, '--json']) == 0
  found = json.loads(capsys.readouterr().out.splitlines()[-1])['sources'][str(tmp_path / 'a')]
  assert (found['rows'], found['left_out']) == (30, {'duplicate': 1, 'malformed': 1, 'too_long': 1})
  assert list(found['sources']) == [file] and 0 < found['packing_efficiency'] <= 1
  assert 'holds shards, examples without their text' in fails('data', 'audit', *words)


def test_finished_shards_are_not_written_over(folder):
  with pytest.raises(UserError, match='holds finished shards: remove them, or give another folder'):
    write(folder)


def flip(path, place):
  content = bytearray(path.read_bytes())
  content[place] ^= 1
  path.write_bytes(content)


def edit(path, **values):
  path.write_text(json.dumps(json.loads(path.read_text()) | values))


DAMAGE = {
  'no card': (lambda a: (a / 'card.json').unlink(), None),
  'no card yet': (lambda a: (a / 'card.json').rename(a / 'unfinished.json'), 'is unfinished'),
  'half a card': (lambda a: (a / 'card.json').write_text('{"format": '), 'card.json is no card of shards'),
  'a newer card': (lambda a: edit(a / 'card.json', format='mathqwen shards 9'), "'mathqwen shards 9'"),
  'a card that lies': (lambda a: edit(a / 'card.json', examples=3), 'its counts do not add up'),
  'a missing shard': (lambda a: (a / 'data-00001.array_record').unlink(), 'lacks data-00001'),
  'a shard more': (lambda a: shutil.copy(a / 'data-00001.array_record', a / 'data-09.array_record'), 'is mixed'),
  'a short shard': (lambda a: (a / 'data-00000.array_record').write_bytes(b'x' * 99), 'damaged .99 bytes instead of'),
  'a changed end': (lambda a: flip(a / 'data-00000.array_record', -9), 'not the file that the card lists'),
  'a changed index': (lambda a: flip(a / 'prompts-00000.array_record', 0), 'not the file that the card lists'),
}


@pytest.mark.parametrize('case', DAMAGE)
def test_damaged_shards_are_refused_in_one_line(case, folder, tmp_path):
  harm, words = DAMAGE[case]
  shutil.copytree(folder, tmp_path / 'a')
  harm(tmp_path / 'a')
  with pytest.raises(UserError, match=words or 'no file of records in this folder') as caught:
    data_of(str(tmp_path / 'a'))
  assert '\n' not in str(caught.value) and str(tmp_path / 'a') in str(caught.value)


def test_a_changed_bit_in_the_middle_is_found_when_it_is_read(tmp_path, monkeypatch):
  monkeypatch.setattr(shard_card, '_END', 64)
  noise = np.random.default_rng(0).integers(0, 1000, (300, T))
  folder = write(tmp_path / 'a', pipeline.Encoded.from_rendered([(ids, [0, *[1] * (T - 1)]) for ids in noise]))
  flip(tmp_path / 'a' / 'data-00000.array_record', 5000)
  data = data_of(folder, eval_examples=0)
  with pytest.raises(UserError, match='data-00000.array_record is damaged .*Corrupted.*: copy it again') as caught:
    next(data.train())
  assert '\n' not in str(caught.value)  # Grain adds lines to it


def test_a_killed_writer_starts_again(tmp_path, capsys):
  """Neither what it left nor what is finished is taken for something else; a folder of the user's is not touched."""
  with pytest.raises(KeyboardInterrupt), shards.Writer(tmp_path / 'a', load_tokenizer(), ChatFormat(), T) as writer:
    writer.add(*EXAMPLES[0], 'x', 'sums')
    raise KeyboardInterrupt
  assert shard_card.is_source(str(tmp_path / 'a'))
  with pytest.raises(UserError, match='is unfinished .*: run the command that makes these shards again'):
    data_of(str(tmp_path / 'a'))
  write(tmp_path / 'a')
  assert 'unfinished shards of an earlier attempt are removed' in capsys.readouterr().err
  assert {path.name for path in (tmp_path / 'a').iterdir()} == {'card.json', *files_of(tmp_path / 'a')}
  for name, words in (('a', 'holds finished shards'), ('mine', 'holds notes.txt and no shards')):
    (tmp_path / 'mine').mkdir(exist_ok=True)
    (tmp_path / 'mine' / 'notes.txt').write_text('mine')
    with pytest.raises(UserError, match=words):
      write(tmp_path / name)
  assert len(Shards(tmp_path / 'a')) == len(EXAMPLES) and (tmp_path / 'mine' / 'notes.txt').exists()


def test_two_writers_do_not_write_at_once(tmp_path):
  with shards.Writer(tmp_path / 'a', load_tokenizer(), ChatFormat(), T) as writer:
    writer.add(*EXAMPLES[0], 'x', 'sums')
    with pytest.raises(UserError, match='another writer of shards is writing here'):
      write(tmp_path / 'a')


def test_a_full_disk(tmp_path):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2500, hard))
  try:
    with pytest.raises(OSError) as caught:
      write(tmp_path / 'a')
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)
  assert caught.value.errno == errno.EFBIG and 'data-00000.array_record' in caught.value.filename
  write(tmp_path / 'a')
  assert len(Shards(tmp_path / 'a')) == len(EXAMPLES)


@pytest.mark.parametrize('change', [{'ids': [1] * (T + 2), 'mask': [1] * (T + 2)}, {'mask': [0] * 9}, {'mask': [1]}])
def test_what_makes_no_example_is_not_written(change, tmp_path):
  values = {'ids': [1] * 9, 'mask': [1] * 9, 'where': 'train.jsonl:3', 'source': 'gsm8k'} | change
  writer = shards.Writer(tmp_path / 'a', load_tokenizer(), ChatFormat(), T)
  with pytest.raises(UserError, match='gsm8k, train.jsonl:3: .* do not make an example'), writer:
    writer.add(**values)
  with pytest.raises(UserError, match='no example to write'), writer:
    pass
