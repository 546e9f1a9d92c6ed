"""README.md of a cleaned folder: what is in it, from its report."""

from mathqwen import files


def write(target: files.AnyPath, result: dict) -> None:
  """Writes the card."""
  files.write_atomically(target / 'README.md', '\n'.join(lines(result)).encode())


def lines(result: dict) -> list[str]:
  """The card, line by line."""
  text = [
    '# Cleaned training data',
    '',
    f'{result["rows"]:,} of {result["rows_read"]:,} rows, made by',
    '',
    f'    {result["command"]}',
    '',
    _how_to_train(result),
    'What was left out, row by row and why, is in `left_out.jsonl`; overlaps with test problems are in `report.json`.',
    '',
    '## Sources',
    '',
    '| source | folder | licence | read | kept |',
    '|---|---|---|---|---|',
  ]
  for entry in result['sources']:
    text.append(
      f'| `{entry["source"]}` | `{entry["folder"]}` | {entry["licence"]} | {entry["rows_read"]:,} | {entry["rows"]:,} |'
    )
  text += ['', '## Left out', '', '| source | reason | rows | for example |', '|---|---|---|---|']
  for entry in result['sources']:
    for reason, found in entry['left_out'].items():
      where, detail = found['rows'][0]
      text.append(f'| `{entry["source"]}` | {reason} | {found["count"]:,} | {where}: {_cell(detail)} |')
  text += ['', '## Test problems that rows overlap with', '', *_tests(result)]
  text += ['', '## Settings', '']
  text += [f'- `{name}`: {value}' for name, value in result['settings'].items()]
  versions = ', '.join(f'{name} {version}' for name, version in result['versions'].items())
  return [*text, '', f'Fingerprint {result["fingerprint"]}; {versions}.', '']


def _how_to_train(result: dict) -> str:
  if shards := result.get('shards'):
    return f'Train on its {shards["tokens"]:,} tokens, in shards, with `--set data.sources=DIR`.'
  part = result['sources'][0]['folder']
  return f'Train on all of it with `--set data.sources=DIR`, on a part with `--set data.sources=DIR/{part}`.'


def _tests(result: dict) -> list[str]:
  kinds = sorted({kind for found in result['test_sets'].values() for kind in found} - {'problems'})
  text = [f'| test set | problems | {" | ".join(kinds)} |', '|---' * (len(kinds) + 2) + '|']
  for name, found in result['test_sets'].items():
    text.append(f'| {name} | {found["problems"]:,} | {" | ".join(str(found.get(kind, 0)) for kind in kinds)} |')
  text += ['', 'Counts are problems of the test set; the kinds are explained in `mathqwen/cleaning/README.md`.']
  if result['test_sets_not_found']:
    text += ['', f'**Not compared with**, because they were not found: {", ".join(result["test_sets_not_found"])}.']
  return text


def _cell(text: str) -> str:
  """A text on one line of a table."""
  return ' '.join(text.split()).replace('|', '\\|')[:80]
