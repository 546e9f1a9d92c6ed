"""`TrainingData`: what a run trains on, from the names in its config to batches."""

import functools
import json
from collections.abc import Iterable, Iterator

import numpy as np

from mathqwen.chat import chat_format
from mathqwen.chat.chat_format import ChatFormat
from mathqwen.config import DataConfig
from mathqwen.data import encoding, pipeline, shard_card, sources
from mathqwen.data.encoded import Encoded, Examples
from mathqwen.data.examples import Example
from mathqwen.data.holding_out import hold_out
from mathqwen.data.left_out import Report
from mathqwen.data.shard_reader import Shards
from mathqwen.errors import UserError
from mathqwen.text.tokenizer import Tokenizer


class TrainingData:
  """The sources of a `DataConfig`, read, tokenised and split. All of this happens here, once."""

  def __init__(
    self,
    cfg: DataConfig,
    tokenizer: Tokenizer,
    shard: tuple[int, int] = (0, 1),
    filled_to: int | None = None,
    chat: ChatFormat | None = None,
    pairs: bool = False,
  ):
    """shard: (this host, hosts). filled_to: as in `pipeline.TrainBatches`. chat: None takes what `cfg` asks for.

    pairs: read pairs of a chosen and a rejected answer.
    UserError: when a source cannot be read, leaves nothing to train on, or loses more rows than `max_left_out` allows.
    """
    self.cfg = cfg
    self.tokenizer = tokenizer
    self.chat = chat or chat_format.for_training(cfg.template, cfg.system_prompt, tokenizer)
    self._shard = shard
    self._filled_to = filled_to
    self.pairs = pairs
    self._sides = 2 if pairs else 1  # tokenised examples of a row of a source
    self.reports: dict[str, Report] = {}  # source -> what was left out of it

    self._only_asked = ''  # see `ChatFormat.only_asked`; of the first example
    self._without_system = 0  # rows of messages that data.system_prompt is not part of
    self.sources: list[Examples] = [self._read(source) for source in cfg.sources]
    self.held_out: Encoded | None = None
    if cfg.eval_examples != 0:
      self.sources, held_out = hold_out(self.sources, cfg.eval_examples, cfg.seed, pairs)
      self.held_out = held_out if len(held_out) else None

  def _read(self, source: str) -> Examples:
    """The examples of one source, tokenised. Adds what was left out of it to `reports`."""
    cfg = self.cfg
    if shard_card.is_source(source):
      if self.pairs:
        raise UserError(
          f'{source} holds shards, which have no pairs: give the files that train.objective=dpo is to read'
        )
      shards = Shards(source)
      shards.check(self.tokenizer, self.chat, cfg.seq_len)
      self.reports[source] = shards.left_out
      self.reports[source].check(source, len(shards), cfg.max_left_out)
      return shards
    report = Report()
    examples = self._looked_at(sources.stream_training(source, cfg, self.chat, report, self.pairs))
    tokens, left_out = encoding.encode(examples, self.tokenizer, cfg.seq_len, self.chat)
    report.merge(left_out)
    report.check(source, len(tokens) // self._sides, cfg.max_left_out)
    self.reports[source] = report
    return tokens

  def _looked_at(self, examples: Iterable[Example]) -> Iterator[Example]:
    """The examples of a source, for what `describe` says about the first one, and about those without a system turn."""
    for number, example in enumerate(examples):
      if number == 0 and not self.reports and self.chat.has_own_turns:
        self._only_asked = self.chat.only_asked(encoding.messages_of(example, self.chat), self.tokenizer)
      if self.cfg.system_prompt:
        self._without_system += _has_no_system_turn(example)
      yield example

  @property
  def noun(self) -> str:
    """What a row of a source is."""
    return 'pairs' if self.pairs else 'examples'

  def count(self, examples: Examples) -> int:
    """How many rows of a source these are."""
    return len(examples) // self._sides

  @functools.cached_property
  def tokens(self) -> int:
    """Positions of one epoch, without padding; where answers share questions, as the first window has it."""
    times = self.cfg.epochs or [1] * len(self.sources)
    alone = round(sum(often * source.positions for often, source in zip(times, self.sources, strict=True)))
    return round(alone * self.rows.tokens_kept()) if self.cfg.share_prompts else alone

  @functools.cached_property
  def rows(self) -> pipeline.PackedRows:
    """The endless packed rows of training."""
    cfg = self.cfg
    return pipeline.packed_rows(
      self.sources, cfg.weights, cfg.seq_len, cfg.seed, cfg.share_prompts, cfg.epochs, self.pairs
    )

  def describe(self) -> list[str]:
    """Lines to print: what was read, held out and left out."""
    lines = []
    for number, (name, source) in enumerate(zip(self.cfg.sources, self.sources, strict=True)):
      lines.append(
        f'{name}: {self.count(source):,} {self.noun}, {source.positions:,} tokens, {source.loss_tokens:,} of them '
        'with loss' + self._how_often(number)
      )
      shapes = self.reports[name].shapes
      if shapes:  # of a user's file
        lines.append(f'  read as {", ".join(f"{shape} ({count:,})" for shape, count in shapes.items())}')
      lines += [f'  left out: {line}' for line in self.reports[name].lines()]
    unread = sorted({name for report in self.reports.values() for name in report.unread})
    if unread:
      lines.append(f'fields that training does not read: {", ".join(unread)}')
    if self._without_system:
      lines.append(
        f'{self._without_system:,} conversations have no system turn and get none: data.system_prompt goes before '
        'single questions only, and a conversation is trained on as it is written'
      )
    lines.append(f'trained with {self.chat.describe(self.tokenizer)}')
    if self._only_asked:
      end = json.dumps(self._only_asked, ensure_ascii=False)
      lines.append(
        f'the template ends each prompt with {end}, and the answers trained on do not begin with it: the model '
        'would be asked in another way than it is trained; put it before the answers, or take another data.template'
      )
    if self.cfg.share_prompts:
      rows = self.rows
      lines.append(
        f'{sum(map(len, self.sources)):,} answers share {len(rows.groups):,} questions: in the first window they '
        f'take {rows.tokens_kept():.1%} of the positions that they take alone'
      )
    if self.held_out is not None:
      lines.append(f'held out for the evaluation loss: {self.count(self.held_out):,} {self.noun}')
    return lines

  def _how_often(self, source: int) -> str:
    """How much of a source is drawn, where the config says so: ', 2 times an epoch of the mixture'."""
    cfg = self.cfg
    if cfg.epochs:
      return f', {cfg.epochs[source]:g} times an epoch of the mixture'
    return f', {cfg.weights[source] / sum(cfg.weights):.1%} of the examples drawn' if cfg.weights else ''

  @functools.cached_property
  def fingerprint(self) -> dict:
    """What must be equal on all hosts, and when a run is continued: `pipeline.fingerprint` of the training part.

    And the checksum of the held-out part, where there is one.
    """
    cfg = self.cfg
    training = pipeline.fingerprint(
      self.sources, cfg.weights, cfg.seq_len, cfg.seed, cfg.share_prompts, cfg.epochs, self.pairs
    )
    return training if self.held_out is None else training | {pipeline.HELD_OUT: self.held_out.checksum}

  @property
  def origins(self) -> dict[str, dict]:
    """Where the sources come from, as far as it is known: what a run records."""
    return {source: report.origin for source, report in self.reports.items() if report.origin}

  def train(self) -> pipeline.TrainBatches:
    """Training batches without end; features as in `packing`, [batch_size / hosts, seq_len]."""
    return pipeline.TrainBatches(self.rows, self.cfg.batch_size, self._shard, self.fingerprint, self._filled_to)

  def eval(self) -> Iterator[dict[str, np.ndarray]]:
    """Batches of one pass over the held-out examples. Call it only when the config holds examples out."""
    batch_size = self._filled_to or self.cfg.batch_size
    return pipeline.eval_batches(self.held_out, batch_size, self.cfg.seq_len, self._shard, self.pairs)


def _has_no_system_turn(example: Example) -> bool:
  """Whether an example is a conversation without a system turn."""
  return example.messages is not None and all(turn['role'] != 'system' for turn in example.messages)
