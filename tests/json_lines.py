"""A few rows in the form of GSM8K, and .jsonl files of any rows."""

import gzip
import json

GSM8K = [
  {'question': f'Janet’s {n} ducks?', 'answer': f'{n}+1 = <<{n}+1={n + 1}>>{n + 1}\n#### {n + 1}'} for n in range(5)
]


def jsonl(*records):
  return ''.join(json.dumps(record, ensure_ascii=False) + '\n' for record in records).encode()


def write_lines(path, *records, end='\n'):
  """path, after writing a line for each record: text as it is, anything else as JSON."""
  path.parent.mkdir(parents=True, exist_ok=True)
  text = '\n'.join(r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in records) + end
  path.write_bytes(gzip.compress(text.encode(), mtime=0) if path.suffix == '.gz' else text.encode())
  return path
