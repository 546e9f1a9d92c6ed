"""`TrainingData`: what a run trains on, from the names in its config to batches."""

import functools
from collections.abc import Iterator

import numpy as np

from mathqwen.config import DataConfig
from mathqwen.data import pipeline, sources
from mathqwen.data.examples import Report
from mathqwen.text.tokenizer import Tokenizer


class TrainingData:
  """The sources of a `DataConfig`, read, tokenised and split. All of this happens here, once."""

  def __init__(self, cfg: DataConfig, tokenizer: Tokenizer, shard: tuple[int, int] = (0, 1)):
    """shard: (this host, hosts). UserError: when a source cannot be read, or leaves nothing to train on."""
    self.cfg = cfg
    self.tokenizer = tokenizer
    self._shard = shard
    self.reports: dict[str, Report] = {}  # source -> what was left out of it

    encoded = []
    for source in cfg.sources:
      examples, report = sources.load(source, 'train', cfg.data_dir)
      tokens, left_out = pipeline.encode(examples, tokenizer, cfg.seq_len, cfg.system_prompt)
      report.merge(left_out)
      self.reports[source] = report
      encoded.append(tokens)

    self.held_out: pipeline.Encoded | None = None
    if cfg.eval_examples:
      encoded, self.held_out = pipeline.hold_out(encoded, cfg.eval_examples, cfg.seed)
    self.sources: list[pipeline.Encoded] = encoded

  @property
  def tokens(self) -> int:
    """Positions of one epoch, without padding."""
    return sum(source.positions for source in self.sources)

  def describe(self) -> list[str]:
    """Lines to print: what was read, held out and left out."""
    lines = []
    for name, source in zip(self.cfg.sources, self.sources, strict=True):
      lines.append(
        f'{name}: {len(source):,} examples, {source.positions:,} tokens, {source.loss_tokens:,} of them with loss'
      )
      lines += [f'  left out: {line}' for line in self.reports[name].lines()]
    if self.held_out is not None:
      lines.append(f'held out for the evaluation loss: {len(self.held_out):,} examples')
    return lines

  @functools.cached_property
  def fingerprint(self) -> dict:
    """What must be equal on all hosts, and when a run is continued: `pipeline.fingerprint` of the training part."""
    return pipeline.fingerprint(self.sources, self.cfg.weights, self.cfg.seq_len, self.cfg.seed)

  def train(self) -> pipeline.TrainBatches:
    """Training batches without end; features as in `packing`, [batch_size / hosts, seq_len]."""
    cfg = self.cfg
    return pipeline.train_batches(self.sources, cfg.weights, cfg.batch_size, cfg.seq_len, cfg.seed, self._shard)

  def eval(self) -> Iterator[dict[str, np.ndarray]]:
    """Batches of one pass over the held-out examples. Call it only when the config holds examples out."""
    return pipeline.eval_batches(self.held_out, self.cfg.batch_size, self.cfg.seq_len, self._shard)
