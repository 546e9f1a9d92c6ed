"""A JSON Lines file in ranges gives what it gives as a whole."""

import gzip

import pytest
from json_lines import write_lines

from mathqwen.data import formats, line_ranges


@pytest.mark.parametrize('read', [40, 10_000])
@pytest.mark.parametrize('end', ['\n', ''])
def test_ranges(read, end, tmp_path, monkeypatch):
  monkeypatch.setattr(line_ranges, '_READ', read)
  rows = [{'query': f'{n}+1= é', 'response': str(n + 1)} for n in range(30)]
  path = write_lines(tmp_path / 'a.jsonl', *rows[:10], '', 'bad', *rows[10:], end=end)
  parts = line_ranges.split(path, 200)
  assert (len(parts) > 3) == (read < 200) and parts[0].start == 0 and parts[-1].stop == path.stat().st_size
  assert [part.stop for part in parts[:-1]] == [part.start for part in parts[1:]]
  found = [record for part in parts for record in line_ranges.records(path, part)]
  plain = [(line, str(value)) for line, value in formats.records(path)]
  assert [(line, str(value)) for line, value in found] == plain and len(found) == 31


def test_what_cannot_be_split(tmp_path):
  rows = write_lines(tmp_path / 'a.jsonl', *({'query': f'{n}', 'response': '1'} for n in range(30)))
  assert line_ranges.split(rows, 10_000) == []
  (tmp_path / 'a.jsonl.gz').write_bytes(gzip.compress(rows.read_bytes()))
  assert line_ranges.split(tmp_path / 'a.jsonl.gz', 100) == []
  (tmp_path / 'a.csv').write_text('query,response\n1,1\n' * 30)
  assert line_ranges.split(tmp_path / 'a.csv', 100) == []
