"""Filters of single rows: why a row is left out, whatever the others are."""

import re
import zlib

from mathqwen.cleaning.settings import Cleaning
from mathqwen.data.compared_rows import Row
from mathqwen.data.compared_text import HAN

REASONS = (
  'too_many_characters',
  'script',
  'mixed_scripts',
  'refusal',
  'truncated',
  'repetitive',
  'no_final_answer',
  'no_box',
)

_LATIN = re.compile('[A-Za-zÀ-ɏ]')
_NO_LETTERS = dict.fromkeys(code for code in range(128) if not chr(code).isalpha())
_FEW_LETTERS = 20  # of a script, below which a text is formulas rather than language
_REFUSAL = re.compile(
  r"^\W*(I('m| am) (very |really )?(sorry|afraid)\W.{0,40}\b(can('t|not)|unable|not able)|I (can('t|not)|am unable to) "
  r'(assist|help|answer|fulfil|provide|comply|solve)|as an? (AI|artificial intelligence|large language)\b|'
  r'(很|非常)?(抱歉|对不起).{0,12}(无法|不能)|作为(一个|一款|一名)?.{0,4}(人工智能|AI|语言模型))',
  re.IGNORECASE,
)
_FINAL = re.compile(r'\d|\\boxed|\\fbox|answer is|答案|Answer:|\\text|\b(yes|no|true|false)\b', re.IGNORECASE)
_OPEN_END = re.compile(r'([,;:+*/=<(\[{&\\，；：、（]|(?<!\d)-|\b(and|or|the|of|is|to|so|we|that|because|where))$')
_LONG = 800  # characters: only longer answers can be repetitive
_REPETITIVE = 0.12  # compressed to this share: prose is at 0.3 and above, a table of steps at 0.2


def reason_to_leave_out(row: Row, cfg: Cleaning) -> tuple[str, str] | None:
  """(one of REASONS, detail), or None. An answer without loss (weight 0) is not looked at."""
  length = sum(len(turn.text) for turn in (*row.questions, *row.answers))
  if length > cfg.max_characters:
    return 'too_many_characters', f'{length:,} characters, clean.max_characters is {cfg.max_characters:,}'
  if found := _script_reason(row, cfg):
    return found
  for turn in row.answers:
    answer = turn.text
    if cfg.refusals and (match := _REFUSAL.search(answer[:200])):
      return 'refusal', match.group().strip()
    if cfg.truncated and (end := _truncated(answer)):
      return 'truncated', end
    if cfg.repetitive and len(answer) > _LONG:
      share = len(zlib.compress(answer.encode('utf-8', 'surrogatepass'), 1)) / len(answer.encode('utf-8', 'replace'))
      if share < _REPETITIVE:
        return 'repetitive', f'compressed to {share:.0%}'
  return _answer_reason(row, cfg)


def _script_reason(row: Row, cfg: Cleaning) -> tuple[str, str] | None:
  turns = (*row.questions, *row.answers)
  if 'latin' in cfg.scripts and all(turn.text.isascii() for turn in turns):
    return None  # most rows: this takes no time
  asked = script_of(' '.join(turn.text for turn in row.questions))
  answered = script_of(' '.join(turn.text for turn in row.answers))
  for script in (asked, answered):
    if script and script not in cfg.scripts:
      return 'script', f'most letters are {script}'
  if cfg.same_script and asked and answered and asked != answered:
    return 'mixed_scripts', f'a question in {asked}, an answer in {answered}'
  return None


def script_of(text: str) -> str:
  """'latin', 'han' or 'other': that of most letters; '' where there are few. A Chinese character counts as a word."""
  if text.isascii():
    return 'latin' if len(text.translate(_NO_LETTERS)) >= _FEW_LETTERS else ''
  han = len(HAN.findall(text))
  latin = len(_LATIN.findall(text))
  other = sum(map(str.isalpha, text)) - han - latin
  if other > max(latin, 4 * han) and other >= _FEW_LETTERS:
    return 'other'
  if 4 * han >= latin:
    return 'han' if han >= _FEW_LETTERS / 4 else ''
  return 'latin' if latin >= _FEW_LETTERS else ''


def _truncated(answer: str) -> str:
  """What shows that an answer stops in the middle; '' where nothing does."""
  text = answer.rstrip()
  if match := _OPEN_END.search(text[-20:]):
    return f'it ends in {match.group()!r}'
  if (box := text.rfind('\\boxed{')) >= 0:
    rest = text[box:].replace('\\{', '').replace('\\}', '')
    if rest.count('{') > rest.count('}'):
      return 'an open \\boxed{'
  if text.count('\\begin{') > text.count('\\end{'):
    return 'an open \\begin{'
  if text.count('```') % 2:
    return 'an open ```'
  return ''


def _answer_reason(row: Row, cfg: Cleaning) -> tuple[str, str] | None:
  last = row.answers[-1].text if row.answers else ''
  if cfg.answer == 'boxed' and '\\boxed' not in last:
    return 'no_box', f'it ends {last[-40:]!r}'
  if cfg.answer == 'final' and not row.gold and not _FINAL.search(last):
    return 'no_final_answer', f'it ends {last[-40:]!r}'
  return None
