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
    '| source | folder | licence | read | kept | trained on |',
    '|---|---|---|---|---|---|',
  ]
  for entry in result['sources']:
    cells = [f'`{entry["source"]}`', f'`{entry["folder"]}`', _licence(entry)]
    text.append(f'| {" | ".join(cells)} | {entry["rows_read"]:,} | {entry["rows"]:,} | {_how_often(entry)} |')
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


def mixed(result: dict, folder: str) -> str:
  """The settings with which a run trains on a cleaned mixture as its config mixes it; '' where no setting says how.

  folder: where it is.
  """
  kept = [entry for entry in result['sources'] if entry['rows']]
  for name, of_source in (('weights', 'weight'), ('epochs', 'epochs')):
    if kept and kept[0].get(of_source) is not None:
      sources = ','.join(f'{folder}/{entry["folder"]}' for entry in kept)
      numbers = ','.join(f'{entry[of_source]:g}' for entry in kept)
      return f'--set data.sources={sources} --set data.{name}={numbers}'
  return ''


def _licence(entry: dict) -> str:
  return entry['licence'] + (f', revision {entry["revision"]}' if entry.get('revision') else '')


def _how_often(entry: dict) -> str:
  if entry.get('weight') is not None:
    return f'weight {entry["weight"]:g}'
  return f'{1 if entry.get("epochs") is None else entry["epochs"]:g} times an epoch'


def _how_to_train(result: dict) -> str:
  if settings := mixed(result, 'DIR'):
    return f'Train on it with `{settings}`.'
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
