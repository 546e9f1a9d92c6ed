"""A file of the row that a test is about, and a plain one, so that what is refused is the row and not the file."""

from json_lines import write_lines

from mathqwen.data import sources

TURNS = [{'role': 'user', 'content': '1+1='}, {'role': 'assistant', 'content': '2'}]
PLAIN = {'question': 'plain?', 'answer': '0'}


def read(tmp_path, record, other=PLAIN, name='rows.jsonl', **options):
  """(the examples of a file with this row and another one, report). options: of `sources.load`."""
  return sources.load(str(write_lines(tmp_path / name, record, other)), **options)


def refusal(tmp_path, record, **options):
  """(kind, reason) of the row, which is left out."""
  _, report = read(tmp_path, record, **options)
  ((kind, ((_, reason),)),) = report.rows.items()
  return kind, reason
