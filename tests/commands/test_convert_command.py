"""`mathqwen convert`: where it refuses to write."""


def test_convert(fails, unread, trained, tmp_path):
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'kept').write_text('x')
  assert fails('convert', 'to-hf', trained, tmp_path / 'full') == f'{tmp_path}/full is not empty: name a new directory'
  assert fails('convert', 'to-hf', trained, tmp_path / 'full' / 'kept').endswith('kept is a file: name a new directory')
  assert (tmp_path / 'full' / 'kept').read_text() == 'x'
