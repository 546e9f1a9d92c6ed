"""The data of one run: its sources read, tokenised, split and reported, ready to be iterated."""

from mathqwen.config import DataConfig
from mathqwen.data import pipeline, sources
from mathqwen.data.examples import Report


class TrainingData:
  """Batches of a `DataConfig` for this host (`shard` = (host, hosts)). Reading and tokenising happen here, once."""

  def __init__(self, cfg: DataConfig, tokenizer, shard: tuple[int, int] = (0, 1)):
    self.cfg, self.tokenizer, self._shard = cfg, tokenizer, shard
    self.reports: dict[str, Report] = {}
    encoded = []
    for source in cfg.sources:
      read, report = sources.load(source, 'train', cfg.data_dir)
      tokens, dropped = pipeline.encode(read, tokenizer, cfg.seq_len, cfg.system_prompt)
      report.merge(dropped)
      self.reports[source] = report
      encoded.append(tokens)
    self.held_out = None
    if cfg.eval_examples:
      encoded, self.held_out = pipeline.hold_out(encoded, cfg.eval_examples, cfg.seed)
    self.sources = encoded

  @property
  def tokens(self) -> int:
    return sum(source.positions for source in self.sources)

  def describe(self) -> list[str]:
    """Lines for people: what was read, held out and left out."""
    lines = []
    for name, source in zip(self.cfg.sources, self.sources, strict=True):
      lines.append(
        f'{name}: {len(source):,} examples, {source.positions:,} tokens, {source.loss_tokens:,} of them with loss'
      )
      lines += [f'  left out: {line}' for line in self.reports[name].lines()]
    if self.held_out is not None:
      lines.append(f'held out for the evaluation loss: {len(self.held_out):,} examples')
    return lines

  def train(self) -> pipeline.TrainBatches:
    cfg = self.cfg
    return pipeline.train_batches(self.sources, cfg.weights, cfg.batch_size, cfg.seq_len, cfg.seed, self._shard)

  def eval(self):
    return pipeline.eval_batches(self.held_out, self.cfg.batch_size, self.cfg.seq_len, self._shard)
