"""README.md of an augmentation: what the data is, where it comes from and how it was made."""

import shlex
import sys
from typing import TYPE_CHECKING

from mathqwen.augment.questions import INSTRUCTIONS
from mathqwen.storage import provenance

if TYPE_CHECKING:
  from mathqwen.augment.augment import Prepared


def text(summary: dict, prepared: 'Prepared') -> str:
  """The data card, in Markdown."""
  request = prepared.request
  made = provenance.code()
  commit = f', commit {made["commit"]}' if made['commit'] else ''
  what = 'questions of' if not request.questions else f'new questions ({request.questions}) made of those of'
  lines = [
    f'# {summary["rows"]:,} rows: answers to the {what} {request.source}',
    '',
    f'`train.jsonl` is a source for training (`--set data.sources={request.out}/train.jsonl`). Its rows have question, '
    'solution, answer, source, id and paths, the number of rows with the same question.',
    f'Answers of `{summary["model"]}`, selected by rejection sampling (RFT, arXiv 2308.01825): the right ones by rule '
    f'`{prepared.rule}` whose calculations all hold, one for each list of equations.',
    *_pairs(summary),
    '',
    *_table('of the answers', _answer_rows(summary)),
  ]
  if summary['dropped']:
    lines += _table('answers that are not kept', summary['dropped'].items())
  if request.questions:
    rows = [('new questions', summary['new_questions']), ('kept', summary['new_questions_kept'])]
    lines += _table('of the new questions', [*rows, *summary['new_questions_dropped'].items()])
  if summary['left_out']:
    lines += _table('rows of the source that are left out', summary['left_out'].items())
  if summary['missing']:
    lines += [f'{summary["missing"]:,} answers are missing: `unanswered.json` has the reasons.', '']
  lines += ['## Source', '', f'- {request.source}; licence: {_licence(prepared.origin)}']
  lines += [f'- SHA-256 of its questions and answers: `{prepared.settings["source_sha256"]}`']
  lines += ['', '## How it was made', '', *_settings(prepared)]
  if summary['request_changes']:
    lines += [f'- the server did not take this part of the requests: {", ".join(summary["request_changes"])}']
  if request.questions in INSTRUCTIONS:
    lines += ['- the teacher was asked: ' + INSTRUCTIONS[request.questions]]
  lines += [
    f'- SHA-256 of train.jsonl: `{summary["sha256"]}`',
    f'- mathqwen {made["version"]}{commit}',
    '',
    '```',
    shlex.join(['mathqwen', *sys.argv[1:]]),
    '```',
  ]
  return '\n'.join(lines) + '\n'


def _pairs(summary: dict) -> list[str]:
  if not summary.get('pairs'):
    return []
  return [
    f'`pairs.jsonl` has {summary["pairs"]:,} pairs of a right and a wrong answer of this model to '
    f'{summary["questions_with_pairs"]:,} of the questions (prompt, chosen, rejected), for train.objective=dpo.'
  ]


def _answer_rows(summary: dict) -> list[tuple[str, object]]:
  rows = [
    ('questions', summary['questions']),
    ('answers', summary['samples']),
    ('right', summary['right']),
    ('undecided', summary['undecided']),
    ('kept', summary['kept']),
    ('questions with a kept answer', summary['questions_with_paths']),
    ('rows of train.jsonl', summary['rows']),
  ]
  if summary['too_long']:
    rows.append(('questions that leave the model no room', summary['too_long']))
  if summary['keep_rate'] is not None:
    rows += [('keep rate', f'{summary["keep_rate"]:.1%}')]
  if summary['paths_per_question'] is not None:
    rows += [('distinct paths per question', f'{summary["paths_per_question"]:.2f}')]
  if summary['tokens_per_second'] is not None:
    rows += [('answers per second', f'{summary["answers_per_second"]:.1f}')]
    rows += [('tokens per second', f'{summary["tokens_per_second"]:,.0f}')]
  return rows


def _table(title: str, rows) -> list[str]:
  lines = [f'| {title} | |', '|---|---|']
  for name, value in rows:
    lines.append(f'| {name} | {f"{value:,}" if isinstance(value, int) else value} |')
  return [*lines, '']


def _settings(prepared: 'Prepared') -> list[str]:
  request = prepared.request
  shown = {name: value for name, value in prepared.settings.items() if name != 'source_sha256' and value is not None}
  if request.questions:
    shown['min_share'] = request.min_share
  else:
    shown['keep_gold'] = request.keep_gold
  return [f'- {name}: {value!r}' for name, value in shown.items()]


def _licence(origin: dict[str, str]) -> str:
  revision = f', revision {origin["revision"]}' if origin.get('revision') else ''
  return origin.get('licence', 'that of its owner; this program does not know it') + revision
