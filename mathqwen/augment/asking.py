"""Asks a model several answers to each of many questions, a window of them at a time, and keeps each as it arrives."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from mathqwen.augment.stored import StoredAnswers
from mathqwen.chat.chat_format import ChatFormat
from mathqwen.data.examples import Example
from mathqwen.errors import UserError, report
from mathqwen.evals import endpoint, prompts, run
from mathqwen.evals.ask import DRAWN, Decoding
from mathqwen.evals.progress import ProgressLine
from mathqwen.hardware import hosts
from mathqwen.inference.model import Model

_WINDOW = 4096  # answers asked for before the next questions are; but at least _ROUNDS for each that is made at a time
_ROUNDS = 32  # at the end of a window, slots run empty


class Asked(Protocol):
  """A model that is asked: `OurModel` or `ServedModel`."""

  name: str
  dtype: str | None
  chat: ChatFormat | None
  system_prompt: str
  at_a_time: int
  drawn: tuple[str, ...]  # the fields of Decoding that its answers depend on, apart from their number
  request_json: Mapping | None  # further fields of each request to a server

  def requests(self, prompt: prompts.Prompt, questions: Sequence[Example]) -> list:
    """What each question is asked with."""

  def room(self, request: object) -> int | None:
    """Tokens that an answer to this request may have at most; None: only the server knows."""

  def answer(
    self, requests: list, limits: list[int], streams: list[int], decoding: Decoding, stop: Sequence[str], done: Callable
  ) -> None:
    """Calls `done(position, fields)` with `response`, `tokens` and `truncated` of each. run.Unanswered: as there."""


class OurModel:
  """A model of ours, over the devices of this host."""

  drawn = DRAWN
  request_json = None

  def __init__(self, model: Model, read: Callable[[], dict] | None, batch_size: int):
    """read: reads its weights, once something is to be asked; None: it has them."""
    if model.tokenizer is None:
      raise UserError(f'{model.name} has no tokenizer files: copy those of its model there')
    self._model = model
    self._read = read
    self.name = model.name
    self.dtype = model.precision
    self.chat = model.chat
    self.tokenizer = model.tokenizer
    self.system_prompt = model.system_prompt
    self.at_a_time = batch_size

  def requests(self, prompt: prompts.Prompt, questions: Sequence[Example]) -> list:
    """The token ids of each question."""
    return prompts.ids(prompt, questions, self.tokenizer, self.chat)

  def room(self, request: list[int]) -> int:
    """The positions that a prompt leaves."""
    return self._model.config.longest - len(request)

  def answer(
    self, requests: list, limits: list[int], streams: list[int], decoding: Decoding, stop: Sequence[str], done: Callable
  ) -> None:
    """As `Asked.answer`."""
    if self._read is not None:
      self._model.params = self._read()
      self._read = None
    self._model.generate_ids(
      requests,
      max_new_tokens=limits,
      batch_size=self.at_a_time,
      on_done=lambda position, ids: done(position, run.response_of_ids(self._model, ids, stop)),
      stop_texts=tuple(stop),
      numbers=streams,
      **{name: getattr(decoding, name) for name in self.drawn},
    )


class ServedModel:
  """A model behind the OpenAI API."""

  dtype = None
  chat = None
  drawn = ('temperature', 'top_p')

  def __init__(self, model: endpoint.Endpoint, concurrency: int):
    self._model = model
    self.name = model.name
    self.system_prompt = model.system_prompt
    self.request_json = model.request_json or None
    self.at_a_time = concurrency

  def requests(self, prompt: prompts.Prompt, questions: Sequence[Example]) -> list:
    """The part of each request that holds the question."""
    return endpoint.requests(prompt, questions, self.system_prompt)

  def room(self, request: dict) -> None:
    """Only the server knows."""

  def answer(
    self, requests: list, limits: list[int], streams: list[int], decoding: Decoding, stop: Sequence[str], done: Callable
  ) -> None:
    """As `Asked.answer`. The server draws from random streams of its own."""
    self._model.generate_ids(
      requests,
      max_new_tokens=limits[0],
      batch_size=self.at_a_time,
      on_done=lambda position, answer: done(position, endpoint.response_of_answer(answer, stop)),
      stop_texts=tuple(stop),
      **{name: getattr(decoding, name) for name in self.drawn},
    )


@dataclasses.dataclass
class Asking:
  """How questions are asked, and what came of it: `ask` asks them."""

  model: Asked
  prompt: prompts.Prompt
  decoding: Decoding
  max_new_tokens: int
  show: bool = True  # a line of progress on standard error
  too_long: list[str] = dataclasses.field(default_factory=list)  # ids of the questions that leave no room for an answer
  why: dict = dataclasses.field(default_factory=dict)  # id of an answer that did not come -> Failure
  answers: int = 0  # that came
  tokens: int = 0  # of them, as far as they were counted
  seconds: float = 0.0

  def ask(
    self,
    name: str,
    questions: Sequence[Example],
    stored: StoredAnswers,
    make_record: Callable[[Example, dict], dict],
    last: Iterable[str] = (),
    state: Callable[[list[int]], str] = lambda window: '',
  ) -> None:
    """Asks for the answers that `stored` lacks, and adds them. Several hosts share the questions.

    name: for the line of progress. make_record: of a question and the fields of an answer. last: ids of the answers
    that earlier runs did not get, whose questions come last. state: what to show after a window of questions.
    run.Unanswered: when the server answers nothing more; without it, `why` has the answers that did not come.
    """
    missing = self._missing(len(questions), stored)
    late = {answer.rpartition('#')[0] for answer in last}
    todo = sorted(missing, key=lambda question: questions[question].id in late)
    host, count = hosts.share()
    samples = self.decoding.samples
    there = len(questions) * samples - sum(len(numbers) for numbers in missing.values())
    if there and host == 0:
      report(f'{name}: {there:,} of {len(questions) * samples:,} answers are there')
    todo = todo[host::count]
    size = max(1, max(_WINDOW, _ROUNDS * self.model.at_a_time) // samples)
    begin = time.monotonic()
    with ProgressLine(name, sum(map(len, missing.values())) // count, 0, self.show and host == 0) as line:
      for start in range(0, len(todo), size):
        window = todo[start : start + size]
        try:
          self._ask_window(window, {i: missing[i] for i in window}, questions, stored, make_record, line)
        finally:
          self.seconds += time.monotonic() - begin
          begin = time.monotonic()
        shown = f'{self.tokens / max(self.seconds, 1e-9):,.0f} tokens/s  {state(window)}'
        line.update(shown)
        if self.show and host == 0:
          report(f'{name}: {min(start + size, len(todo)):,} of {len(todo):,} questions: {shown}')

  def _missing(self, count: int, stored: StoredAnswers) -> dict[int, list[int]]:
    """The numbers of the answers that no host has, by question."""
    own = [[i, sorted(numbers)] for i in range(count) if (numbers := stored.numbers(i))]
    there: dict[int, set[int]] = {}
    for of_host in hosts.gather(own):
      for question, numbers in of_host:
        there.setdefault(question, set()).update(numbers)
    every = range(self.decoding.samples)
    wanted = {i: [number for number in every if number not in there.get(i, ())] for i in range(count)}
    return {i: numbers for i, numbers in wanted.items() if numbers}

  def _ask_window(
    self,
    window: list[int],
    missing: dict[int, list[int]],
    questions: Sequence[Example],
    stored: StoredAnswers,
    make_record: Callable[[Example, dict], dict],
    line: ProgressLine,
  ) -> None:
    requests = dict(zip(window, self.model.requests(self.prompt, [questions[i] for i in window]), strict=True))
    limits = {i: self._limit(requests[i]) for i in window}
    self.too_long += [questions[i].id for i in window if limits[i] < 1]
    # The first missing answer to each question, then the second, ...: a question that the server refuses is one of
    # many at any time.
    rounds = range(max(map(len, missing.values())))
    todo = [(i, missing[i][at]) for at in rounds for i in window if limits[i] > 0 and at < len(missing[i])]
    if not todo:
      return

    def done(position, fields):
      question, number = todo[position]
      example = questions[question]
      stored.add(make_record(example, {'id': f'{example.id}#{number}', **fields}))
      self.answers += 1
      self.tokens += fields['tokens'] or 0
      line.advance()

    try:
      self.model.answer(
        [requests[i] for i, _ in todo],
        [limits[i] for i, _ in todo],
        [(i * self.decoding.samples + number) % 2**32 for i, number in todo],
        self.decoding,
        self.prompt.stop,
        done,
      )
    except run.Unanswered as error:
      self.why |= {f'{questions[todo[at][0]].id}#{todo[at][1]}': failure for at, failure in error.why.items()}
      if error.unasked:
        raise run.Unanswered(self.why, error.unasked) from None

  def _limit(self, request: object) -> int:
    room = self.model.room(request)
    return self.max_new_tokens if room is None else min(self.max_new_tokens, room)
