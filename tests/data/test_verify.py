"""`mathqwen data verify`, and the ledger that it reads."""

import json
import pathlib
import shutil

import pytest
from encoded_sums import T, encode, sums
from train_batches import train_batches

from mathqwen import cli
from mathqwen.data import packing


def ledger(workdir):
  return [json.loads(line) for line in (workdir / 'ledger.jsonl').read_text().splitlines()]


def test_a_digest_changes_with_each_feature_and_the_order_of_rows():
  rows = packing.pack([encode(sums(9))[i] for i in range(9)], T)
  split = [{name: values[row] for name, values in rows.items()} for row in range(len(rows['tokens']))]
  digests = {packing.digest(split), packing.digest(split[::-1])}
  for name in packing.FEATURES:
    changed = {feature: values.copy() for feature, values in split[0].items()}
    changed[name][-1] += 1
    digests.add(packing.digest([changed, *split[1:]]))
  assert len(digests) == 2 + len(packing.FEATURES)


def test_every_host_has_the_digest_of_the_whole_batch():
  source = encode(sums(40))
  hosts = [train_batches([source], (), 4, T, 0, shard) for shard in ((0, 1), (0, 2), (1, 2), (3, 4))]
  for _ in range(5):
    for batches in hosts:
      next(batches)
    assert len({batches.digest for batches in hosts}) == 1
  for batches in hosts:
    batches.close()


def test_the_ledger_of_a_run(trained, tiny, tmp_path, capsys):
  assert [line['step'] for line in ledger(trained)] == list(range(1, 21))
  assert len({line['batch'] for line in ledger(trained)}) == 20

  # Continued from an earlier checkpoint, in other micro-batches.
  workdir = tmp_path / 'run'
  shutil.copytree(trained, workdir)
  shutil.rmtree(workdir / 'checkpoints' / '20')
  assert cli.main(['train', tiny.config, '--workdir', str(workdir), '--set', 'train.micro_batches=2']) == 0
  assert ledger(workdir) == ledger(trained)

  capsys.readouterr()
  assert cli.main(['data', 'verify', str(workdir), '--json']) == 0
  assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {'steps': 20}


def test_other_data_than_the_run_had(trained, fails, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(trained, workdir)
  lines = (workdir / 'ledger.jsonl').read_text().splitlines(keepends=True)
  lines[6] = lines[6].replace(ledger(workdir)[6]['batch'], '0' * 16)
  (workdir / 'ledger.jsonl').write_text(''.join(lines))
  error = fails('data', 'verify', workdir)
  assert 'the batch of step 7 differs from what this data gives, whose first example is train.jsonl:' in error
  assert error.endswith('the data is that of the run, so these lines were changed: copy the ledger again')
  (workdir / 'ledger.jsonl').write_text(''.join(lines[:3] + lines[4:]))
  assert 'step 4 is missing (line 4 is of step 5)' in fails('data', 'verify', workdir)
  (workdir / 'ledger.jsonl').write_bytes(b'\n'.join(line.encode() for line in lines[:15]) + b'\xff\n')
  assert f'{workdir}/ledger.jsonl ends at step 15, and the newest checkpoint is of step 20' in fails(
    'data', 'verify', workdir
  )
  (workdir / 'ledger.jsonl').write_text('')
  assert 'ledger.jsonl has no step' in fails('data', 'verify', workdir)
  (workdir / 'ledger.jsonl').unlink()
  assert 'holds no ledger.jsonl' in fails('data', 'verify', workdir)


@pytest.mark.parametrize(
  'change, words',
  [
    (lambda rows: rows[:-1], 'train.jsonl gives 151 training examples, and the run had 152: give the data and the'),
    (lambda rows: [*rows[:40], *rows[60:39:-1], *rows[61:]], 'train.jsonl does not hold what the run was trained on'),
    (lambda rows: [row.replace('": "', '": "1') for row in rows], 'train.jsonl does not hold what the run was trained'),
  ],
  ids=['a row less', 'rows in another order', 'other numbers'],
)
def test_a_changed_data_file(change, words, trained, tiny, fails, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(trained, workdir, ignore=shutil.ignore_patterns('checkpoints'))
  rows = pathlib.Path(tiny.train).read_text().splitlines()
  other = tmp_path / 'train.jsonl'
  other.write_text('\n'.join(change(rows)) + '\n')
  for name in ('experiment.json', 'sessions.jsonl'):
    (workdir / name).write_text((workdir / name).read_text().replace(tiny.train, str(other)))
  assert words in fails('data', 'verify', workdir)
  # A run of an earlier version left no sessions: its batches still tell.
  (workdir / 'sessions.jsonl').unlink()
  assert ' differs from what this data gives' in fails('data', 'verify', workdir)


@pytest.mark.parametrize('weights', [(), (1.0, 3.0)])
def test_a_continued_run_has_the_same_digests(weights):
  sources = [encode(sums(15)), encode(sums(15, 100))]
  through = train_batches(sources, weights, 4, T, 0)
  digests = []
  for step in range(12):
    if step == 7:
      state = through.get_state()
    next(through)
    digests.append(through.digest)
  continued = train_batches(sources, weights, 4, T, 0, (1, 2))
  continued.set_state(state)
  for digest in digests[7:]:
    next(continued)
    assert continued.digest == digest
