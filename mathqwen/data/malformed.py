"""`Malformed`: a record that is no example, and why."""

import json


class Malformed(ValueError):
  """A record that cannot be read; the message says why."""

  kind = 'malformed'  # under which a `Report` counts it


class Unverified(Malformed):
  """A row that its data set marks as wrong, or does not mark as right."""

  kind = 'unverified'


def check_text(record: dict) -> None:
  """Malformed: when any text of the record cannot be written as UTF-8."""
  try:
    for name, value in record.items():
      name.encode('utf-8')
      (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).encode('utf-8')
  except UnicodeEncodeError as error:
    raise Malformed('holds half a surrogate pair') from error
