"""Which characters of a rendered conversation the model has to generate: the assistant's mask for any template."""

import dataclasses
from collections.abc import Callable, Sequence

from mathqwen.chat.traced import LITERAL, MARKED, OWN, UNKNOWN, Text

Span = tuple[int, int]  # first character, one past the last


class OriginLost(Exception):
  """A template did something to a text after which nobody knows whose it is. Its argument is the piece of text."""


@dataclasses.dataclass(frozen=True)
class _Piece:
  """A run of equal origin, with its place in the text."""

  start: int
  stop: int
  kind: int
  turn: int
  marked: bool


def _pieces(text: Text) -> list[_Piece]:
  pieces = []
  at = 0
  for length, where in text._runs:
    pieces.append(_Piece(at, at + length, where & 3, (where >> 3) - 1, bool(where & MARKED)))
    at += length
  return pieces


def spans(
  text: Text,
  turns: Sequence[int],
  generation_prompt: Callable[[int, int], str | None],
  specials: Sequence[Span],
  tokens: Sequence[str],
  silent: frozenset[int] | None = None,
  calls: frozenset[int] = frozenset(),
) -> list[Span]:
  """The parts of `text` that carry loss, in order.

  turns              indices of the messages that are trained on
  generation_prompt  (index of a message, where what it says begins) -> what the template writes to ask for it; None
                     when that is, or may as well be, all that stands before
  specials           the places of special tokens in the text
  tokens             added tokens as text: a header does not end inside of one
  silent             None; for a template with {% generation %} marks, which then decide, the answers without loss
  calls              indices of the messages that call tools

  OriginLost: when the template lost the origin of a character.
  """
  pieces = _pieces(text)
  for piece in pieces:
    if piece.kind == UNKNOWN and piece.stop > piece.start:
      raise OriginLost(text[piece.start : piece.stop])
  found = []
  if silent is not None:
    found = [(piece.start, piece.stop) for piece in pieces if piece.marked and piece.turn not in silent]
  else:
    for turn in turns:
      span = _answer(text, pieces, turn, generation_prompt, specials, tokens, turn in calls)
      if span is not None:
        found.append(span)
  return sorted(found)


def _answer(text, pieces, turn, generation_prompt, specials, tokens, calls) -> Span | None:
  """The span of one message; None when the template writes nothing of it."""
  mine = _turn_pieces(pieces, turn)
  if not mine:
    return None
  own = [piece for piece in mine if piece.kind == OWN and piece.turn == turn]
  first = own[0].start if own else mine[-1].stop
  before = max((p.stop for p in pieces if p.kind == OWN and p.turn != turn and p.stop <= first), default=0)
  asked = generation_prompt(turn, first if own else 0)
  start = first if asked is None else _header_end(text, before, first, asked, tokens)
  if own:
    start = own[0].start if start is None else start
    end = own[-1].stop
  elif start is None:
    # An empty answer under a template without generation prompt: its end of turn is all there is to generate.
    inside = [span for span in specials if mine[0].start <= span[0] and span[1] <= mine[-1].stop]
    return inside[-1] if inside else None
  else:
    end = start

  following = [span for span in specials if end <= span[0] and span[1] <= mine[-1].stop]
  if following:
    end = following[0][1]
    for span in following[1:]:
      # A tool call may end with a special token of its own, right before the end of the turn.
      if not calls or span[0] != end:
        break
      end = span[1]
  elif calls and mine[-1].stop > end:
    # The template closes a call with tags that are plain text. They are generated; white space behind them is not.
    end += len(text[end : mine[-1].stop].rstrip())
  return (start, end) if end > start else None


def _turn_pieces(pieces: Sequence[_Piece], turn: int) -> list[_Piece]:
  """What the template wrote for this message: from its first to its last piece, in order."""
  literals = any(piece.kind == LITERAL and piece.turn == turn for piece in pieces)
  groups: list[list[_Piece]] = [[]]
  for piece in pieces:
    # Text written outside of any loop over messages belongs to the turn around it. So does all of the template's text
    # where the turn has none of its own: another turn's loop body writes it.
    if piece.turn == turn or (piece.kind == LITERAL and (piece.turn == -1 or not literals)):
      groups[-1].append(piece)
    else:
      groups.append([])
  has_own = any(piece.kind == OWN and piece.turn == turn for piece in pieces)
  chosen = []
  for group in groups:
    kinds = {piece.kind for piece in group if piece.turn == turn}
    if (LITERAL in kinds or not literals) and (OWN in kinds or not has_own) and kinds:
      chosen.append(group)
  if not chosen:
    # The text of the message stands in other turns only.
    chosen = [group for group in groups if any(p.kind == OWN and p.turn == turn for p in group)]
  return [piece for group in chosen for piece in group]


def _header_end(text: str, before: int, first: int, asked: str, tokens: Sequence[str]) -> int | None:
  """Where the longest beginning of the generation prompt `asked` ends in text[before:first]; None without one."""
  for length in range(len(asked), 0, -1):
    at = text.rfind(asked[:length], before, first)
    if at < 0:
      continue
    kept = whole_tokens(asked, length, tokens)
    if not asked[:kept].strip():
      return None
    return text.rfind(asked[:kept], before, first) + kept
  return None


def whole_tokens(text: str, length: int, tokens: Sequence[str]) -> int:
  """`length`, or less, so that text[:length] does not end inside of one of the tokens."""
  for token in tokens:
    at = text.find(token)
    while 0 <= at < length:
      if length < at + len(token):
        length = at
        break
      at = text.find(token, at + 1)
  return length


def generation_prompt(asked: Text, answered: str, tokens: Sequence[str]) -> str:
  """What `asked`, a rendering with add_generation_prompt, has more than `answered`, the same without it."""
  if asked.startswith(answered):
    return str.__str__(asked)[len(answered) :]
  # The template ends a conversation in another way when it asks for no answer. The prompt begins where they part, at
  # the beginning of a token or of the literal there.
  common = next((i for i, (a, b) in enumerate(zip(asked, answered, strict=False)) if str(a) != str(b)), len(answered))
  begin = whole_tokens(asked, common, tokens)
  if begin == common:
    at = 0
    for length, _ in asked._runs:
      if at < common < at + length:
        begin = at
      at += length
  return str.__str__(asked)[begin:]
