"""Data sets as tensorflow-datasets prepares them, by name and by folder, without TensorFlow."""

import struct
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mathqwen.data.sources import load
from mathqwen.errors import UserError

TURNS = {'role': ['user', 'assistant'], 'content': ['1+1=', 'It is 2.\n#### 2']}


def build(given, rows, features, root, config=None):
  """A data set that the library builds: train has all rows, test the first."""

  class Mine(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    name = given
    VERSION = tfds.core.Version('1.0.0')
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config, version='1.2.0')] if config else []

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(features),
        disable_shuffling=True,
        redistribution_info={'license': 'CC BY 4.0'},
      )

    def _split_generators(self, dl_manager):
      return {'train': enumerate(rows), 'test': enumerate(rows[:1])}

    def _generate_examples(self):
      pass

  builder = Mine(data_dir=str(root), file_format='array_record', **({'config': config} if config else {}))
  builder.download_and_prepare()
  return builder


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  root = tmp_path_factory.mktemp('tensorflow_datasets')
  text = tfds.features.Text
  rows = [{'question': f'{n}+1=', 'answer': f'It is {n + 1}.\n#### {n + 1}', 'level': n} for n in range(4)]
  build('my_sums', rows, {'question': text(), 'answer': text(), 'level': tfds.features.Scalar(np.int64)}, root)
  turns = tfds.features.Sequence({'role': text(), 'content': text()})
  build(
    'my_chats',
    [{'messages': TURNS, 'tags': ['a', 'b']}],
    {'messages': turns, 'tags': tfds.features.Sequence(text())},
    root,
    'short',
  )
  rows = [{'question': question, 'answer': '2'} for question in ('1+1=', 'cafés?'.encode('latin-1'))]
  build('my_latin', rows, {'question': text(), 'answer': text()}, root)
  return root


def test_by_name_and_by_folder(prepared, monkeypatch, capsys):
  monkeypatch.setenv('TFDS_DATA_DIR', str(prepared))
  for source in ('tfds:my_sums', 'tfds:my_sums:1.0.0', str(prepared / 'my_sums' / '1.0.0')):
    kept, report = load(source)
    assert [(e.question, e.answer) for e in kept] == [(f'{n}+1=', str(n + 1)) for n in range(4)]
    assert kept[2].extra == {'level': 2} and report.shapes == {'{question, answer}': 4}
    assert len(load(source, 'test')[0]) == 1
  assert 'tfds:my_sums: my_sums/1.0.0, licence CC BY 4.0, 4 rows' in capsys.readouterr().err
  for source in ('tfds:my_chats', 'tfds:my_chats/short', 'tfds:my_chats/short:1.2.0'):
    ((example,), _) = load(source)
    assert [turn['content'] for turn in example.messages] == TURNS['content'] and example.answer == '2'
    assert example.extra == {'tags': ['a', 'b']}
  kept, report = load('tfds:my_latin')
  assert len(kept) == 1 and report.rows['malformed'][0][1] == 'holds text that is not UTF-8'
  assert 'tensorflow' not in sys.modules


def test_files_of_the_older_format(prepared, tmp_path):
  """TFDS writes TFRecord files by default, and only TensorFlow can write them: the frames are made here."""
  from array_record.python.array_record_module import ArrayRecordReader

  folder = prepared / 'my_sums' / '1.0.0'
  reader = ArrayRecordReader(str(folder / 'my_sums-train.array_record-00000-of-00001'))
  frames = [struct.pack('<QI', len(record), 0) + record + bytes(4) for record in reader.read_all()]
  reader.close()
  path = tmp_path / 'my_sums-train.tfrecord-00000-of-00001'
  path.write_bytes(b''.join(frames))
  with pytest.raises(UserError, match='has no features.json'):
    load(str(path))
  (tmp_path / 'features.json').write_bytes((folder / 'features.json').read_bytes())
  assert [e.answer for e in load(str(path))[0]] == ['1', '2', '3', '4']
  path.write_bytes(b''.join(frames)[:-9])
  with pytest.raises(UserError, match='damaged after row 3 .*it ends in the middle of a record'):
    load(str(path))


@pytest.mark.parametrize(
  'source, words',
  [
    ('tfds:my_sum', "neither tensorflow-datasets nor .* has a data set 'my_sum'; did you mean tfds:my_sums"),
    ('tfds:my_sums:3.0.0', 'is not prepared in .*: run `tfds build my_sums --file_format=array_record --data_dir='),
    ('tfds:gsm8k', 'is not prepared in .*set TFDS_DATA_DIR'),
    ('tfds:my_chats/long', 'is not prepared in .*: run `tfds build my_chats/long'),
    ('tfds:a b', 'write tfds:NAME, which /CONFIG and :VERSION may follow'),
  ],
)
def test_what_is_not_there(source, words, prepared, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(prepared))
  monkeypatch.setattr(tfds, 'list_builders', lambda **_: ['gsm8k', 'mnist'])  # it looks at all modules of the library
  with pytest.raises(UserError, match=words) as caught:
    load(source)
  assert '\n' not in str(caught.value)


def test_a_split_that_is_not_there(prepared, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(prepared))
  for source in ('tfds:my_sums', str(prepared / 'my_sums' / '1.0.0')):
    with pytest.raises(UserError, match='none called validation'):
      load(source, 'validation')


def test_short_floats_are_their_shortest_decimals(tmp_path):
  features = {'question': tfds.features.Text(), 'answer': tfds.features.Scalar(np.float32)}
  build('my_tenths', [{'question': '1/10', 'answer': np.float32(0.1)}], features, tmp_path)
  ((example,), _) = load(str(tmp_path / 'my_tenths' / '1.0.0'))
  assert example.answer == '0.1'
