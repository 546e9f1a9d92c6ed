"""`mathqwen data inspect --page`: a config's data as one HTML page (`page.document`).

What a page shows of large data is a sample, and each heading says so. What a cleaning left out is read from the
report that `mathqwen data clean` wrote beside its rows.
"""

import collections
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from mathqwen import files, page
from mathqwen.chat.chat_format import text_with_specials
from mathqwen.data import formats, prompts, row_parts, shard_card
from mathqwen.data.encoded import Examples
from mathqwen.data.left_out import Report
from mathqwen.data.training_data import TrainingData
from mathqwen.errors import report
from mathqwen.text.tokenizer import Tokenizer

_EXAMPLES = 100  # of each source, with their texts
_PACKED = 16  # rows
_MEASURED = 20_000  # examples of a source whose lengths are counted
_INDEXED = 1_000_000  # examples up to which answers to the same question are counted
_LISTED = 300  # rows of each reason, and test problems
_BINS = 12
_FIELDS = ('id', 'kind', 'groups', 'heading', 'more')  # of a row, as inspect.js takes them
# The choices of the page, with the keys of `choices` in inspect.js.
_KINDS = {
  'all': 'all',
  'example': 'examples',
  'packed': 'packed rows',
  'left_out': 'left out',
  'duplicate': 'duplicates',
  'test': 'test problems',
}
_REASONS = ['source', 'reason', 'rows', 'for example']  # header of a table
_LABELS = {'set': 'source', 'group': 'reason or test set', 'find': 'text', 'show': 'what is shown'}


def write(path: files.AnyPath, title: str, data: TrainingData, numbers: Mapping[str, dict]) -> None:
  """Writes the page. numbers: of each source, as `inspect.inspect_data` returns them. OSError: when it cannot be."""
  cleanings = {name: _Cleaned(name) for name in data.cfg.sources}
  sets = []
  panels: list[str] = []
  reasons: list[list[str]] = []
  notes = []
  for name, source in zip(data.cfg.sources, data.sources, strict=True):
    cleaned = cleanings[name]
    rows = [*_examples(source, data), *cleaned.left_out()]
    reports = cleaned.reports()
    if not reports or not shard_card.is_source(name):  # cleaned shards repeat what their report says
      rows += _left_out(data.reports[name])
      reports.append(data.reports[name])
    sets.append({'name': name, 'fields': _FIELDS, 'rows': rows})
    for kind, count in sum((found.counts for found in reports), start=collections.Counter()).items():
      where, detail = next(found.rows[kind][0] for found in reports if found.rows[kind])
      reasons.append([name, kind, f'{count:,}', f'{where}: {detail}'[:100]])
    panels += _histograms(name, source)
    if len(source) > _MEASURED:
      notes.append(f'{name}: lengths are those of {_MEASURED:,} of {len(source):,} examples, evenly spread')
    if len(source) > _INDEXED:
      notes.append(
        f'{name}: answers to the same question are not shown, because it has more than {_INDEXED:,} examples'
      )
  folders = {str(cleaned.folder): cleaned for cleaned in cleanings.values()}  # several sources may be of one
  together = [*_packed(data), *(row for cleaned in folders.values() for row in cleaned.test_problems())]
  sets.append({'name': 'all sources together', 'fields': _FIELDS, 'rows': together})

  sections = {
    'sources': ('Sources', _totals(numbers, data) + page.notes(data.describe())),
    'lengths': ('Lengths and answers', page.notes(notes) + f'<div class="panels">{"".join(panels)}</div>'),
    'left-out': ('Left out', page.table('Why', _REASONS, reasons) if reasons else ''),
    'rows': ('Rows', page.notes([_sampled()]) + page.browser(sets, _KINDS, 'rows', _LABELS)),
  }
  files.write_atomically(path, page.document(title, sections, sets, 'inspect.js').encode('utf-8', 'replace'))


def _totals(numbers: Mapping[str, dict], data: TrainingData) -> str:
  rows = []
  for name, found in numbers.items():
    totals = [f'{found[total]:,}' for total in ('rows', 'tokens', 'loss_tokens')]
    rows.append([name, *totals, f'{found["packing_efficiency"]:.2%}'])
  header = ['source', data.noun, 'tokens', 'with loss', f'filled, packed to {data.cfg.seq_len:,}']
  return page.table('As training reads them', header, rows)


def _sampled() -> str:
  return (
    f'Of each source {_EXAMPLES} examples, evenly spread, and up to {_LISTED} rows of each reason and test problems; '
    f'of all together the first {_PACKED} packed rows. Tokens that are trained on stand on colour.'
  )


# --- examples and packed rows ---


def _spread(count: int, most: int) -> list[int]:
  """At most so many of the numbers below `count`, evenly spread."""
  return list(range(count)) if count <= most else np.linspace(0, count - 1, most).astype(int).tolist()


def _examples(source: Examples, data: TrainingData) -> Iterator[list]:
  chosen = _spread(len(source), _EXAMPLES)
  for index, (ids, mask) in zip(chosen, source.read(chosen), strict=True):
    shown = _shown(ids.tolist(), (mask != 0).tolist(), data.tokenizer)
    facts = f'{len(ids):,} tokens, {int(np.count_nonzero(mask)):,} with loss'
    if data.pairs:
      facts += ', rejected' if index % 2 else ', chosen'
    heading = ''.join(text for text, _ in shown['runs'])[:400]
    yield [source.where[index], 'example', [], heading, shown | {'facts': facts}]


def _shown(ids: Sequence[int], has_loss: Sequence[bool], tokenizer: Tokenizer) -> dict:
  """The text of ids in runs with and without loss, and token by token."""
  runs = [[text, int(with_loss)] for text, with_loss in row_parts.runs(ids, has_loss, tokenizer)]
  return {'runs': runs, 'pieces': _pieces(ids, tokenizer), 'loss': ''.join('01'[marked] for marked in has_loss)}


def _pieces(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
  """The text of each token. It is what the token adds to the one before: alone, some lose their space."""
  pieces = []
  for before, token_id in zip([None, *ids], ids, strict=False):
    alone = text_with_specials([token_id], tokenizer)
    first = '' if before is None else text_with_specials([before], tokenizer)
    both = alone if before is None else text_with_specials([before, token_id], tokenizer)
    piece = both[len(first) :] if both.startswith(first) else alone
    pieces.append(f'<{token_id}>' if '\ufffd' in piece else piece)
  return pieces


def _packed(data: TrainingData) -> list[list]:
  """The first packed rows of training, with their segments."""
  seq_len = data.cfg.seq_len
  features, names = data.rows.pack(0), data.rows.names_by_row(0)
  found = []
  for number in range(min(_PACKED, len(features['tokens']))):
    parts = row_parts.parts({name: values[number] for name, values in features.items()})
    # With shared prompts a row has more parts than examples.
    has_names = len(names[number]) == len(parts)
    segments = []
    for index, part in enumerate(parts):
      name = names[number][index] if has_names else f'segment {part.segment}, answer {part.answer}'
      shown = _shown(part.ids, part.has_loss, data.tokenizer)
      segments.append(shown | {'name': name + part.place, 'positions': len(part.ids) - 1})
    used = sum(segment['positions'] for segment in segments)
    heading = f'{len(segments)} segments, {used:,} of {seq_len:,} positions ({used / seq_len:.1%})'
    found.append([f'row {number + 1}', 'packed', [], heading, {'segments': segments, 'positions': seq_len}])
  return found


# --- histograms ---


def _histograms(name: str, source: Examples) -> list[str]:
  chosen = source.read(_spread(len(source), _MEASURED))
  panels = [
    _histogram(f'{name}: tokens of an example', [len(ids) for ids, _ in chosen]),
    _histogram(f'{name}: tokens with loss', [int(np.count_nonzero(mask)) for _, mask in chosen]),
  ]
  if len(source) <= _INDEXED:
    entries = prompts.all_entries(source.prompt_indexes())
    _, answers = np.unique(entries['prompt'], return_counts=True)
    panels.append(_histogram(f'{name}: examples with the same question', answers.tolist()))
  return panels


def _histogram(title: str, values: Sequence[int]) -> str:
  """Counts of whole numbers in at most _BINS ranges of one width."""
  low, high = min(values), max(values)
  width = -(-(high - low + 1) // _BINS)
  counts = np.bincount((np.array(values) - low) // width)
  bars = []
  for number, count in enumerate(counts.tolist()):
    first = low + number * width
    label = f'{first:,}' if width == 1 else f'{first:,} to {first + width - 1:,}'
    bars.append(page.bar(label, count / int(counts.max()), f'{count:,}', 'count'))
  return page.panel(title, bars)


# --- what was left out ---


def _left_out(of_source: Report) -> Iterator[list]:
  for reason, rows in of_source.rows.items():
    for number, (where, detail) in enumerate(rows[:_LISTED]):
      name = f'{where} #{number + 1} {reason}'
      yield [name, 'left_out', [reason], f'{reason}: {detail}', {'where': where, 'detail': detail}]


def _read_cleaning(path: files.AnyPath) -> dict:
  """The report of a cleaning; {} where there is none, or one of another program. A damaged one has a line."""
  if not path.is_file():
    return {}
  try:
    found = json.loads(path.read_bytes())
  except (ValueError, RecursionError) as error:
    report(f'{path} cannot be read ({error}): if a cleaning wrote it, the page lacks what was left out; copy it again')
    return {}
  return found if isinstance(found, dict) and 'contamination' in found else {}


class _Cleaned:
  """What `mathqwen data clean` says about a source that it wrote; nothing where it did not."""

  def __init__(self, source: str):
    self.folder: files.AnyPath | None = None
    self._hits: list[dict] = []
    self._entries: list[dict] = []
    if not shard_card.is_path(source):
      return
    folder = files.path(source)
    for place in (folder, folder.parent):
      found = _read_cleaning(place / 'report.json')
      entries = [entry for entry in found.get('sources', ()) if place == folder or entry['folder'] == folder.name]
      if entries:
        self.folder, self._hits, self._entries = place, found['contamination'], entries
        return

  def reports(self) -> list[Report]:
    """What was left out of each of its sources."""
    return [Report.from_dict(entry['left_out']) for entry in self._entries]

  def left_out(self) -> Iterator[list]:
    """Up to _LISTED rows of each reason."""
    sources = {entry['source'] for entry in self._entries}
    listed: dict[str, int] = {}
    for number, line in enumerate(self._lines(), 1):
      reason = line['reason']
      if line['source'] not in sources or listed.get(reason, 0) >= _LISTED:
        continue
      listed[reason] = listed.get(reason, 0) + 1
      kind = 'duplicate' if reason in ('duplicate', 'near_duplicate') else 'left_out'
      heading = f'{reason}: {line["detail"]}'
      yield [f'{line["where"]} #{number}', kind, [reason], heading, line]

  def _lines(self) -> Iterable[dict]:
    path = self.folder and self.folder / 'left_out.jsonl'
    if path is None or not path.is_file():
      return
    with formats.opened(path) as lines:
      yield from map(json.loads, lines)

  def test_problems(self) -> Iterator[list]:
    """Test problems that rows overlap with, those with the most rows first."""
    for hit in sorted(self._hits, key=lambda hit: -hit['rows'])[:_LISTED]:
      heading = f'{hit["test_set"]} {hit["id"]}: {hit["kind"]}, {hit["rows"]:,} rows'
      yield [f'{hit["test_set"]} {hit["id"]} {hit["kind"]}', 'test', [hit['kind'], hit['test_set']], heading, hit]
