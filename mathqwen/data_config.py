"""`DataConfig`: the settings data.*, which examples are trained on and how they become batches."""

import dataclasses

from mathqwen.settings import setting

# Bounds of a seed: what NumPy and JAX both take.
SEED = {'at_least': 0, 'at_most': 2**32 - 1}


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Which examples are trained on, and how they become batches."""

  sources: tuple[str, ...] = setting(
    ('gsm8k',),
    help='names of data sets, whose training split is read, with options as in gsm8k?marks=keep (see below); files, '
    'folders or patterns (JSON Lines, JSON, CSV, Parquet, Arrow), local or gs://; folders of shards (mathqwen data '
    'clean --tokenizer); hf:ORGANISATION/NAME, a data set on the Hugging Face hub; or tfds:NAME[/CONFIG][:VERSION], '
    'one that tensorflow-datasets prepared',
    path='data',
  )
  weights: tuple[float, ...] = setting(
    (),
    help='share of the examples drawn from each source; empty takes every example once an epoch',
    above=0,
    remedy='leave a source out of data.sources instead',
  )
  epochs: tuple[float, ...] = setting(
    (),
    help='how often the examples of each source come while the mixture is gone through once, as 3,1 or 1,0.5; empty: '
    'once. Not with data.weights',
    above=0,
    remedy='leave a source out of data.sources instead',
  )
  data_dir: str | None = setting(
    None,
    help='a copy of the named data sets, local or gs://; None reads what `mathqwen data prepare` made',
    path='path',
    changes_weights=False,
  )
  columns: tuple[str, ...] = setting(
    (),
    help='names of the columns of files and hub data sets, FIELD=COLUMN each (question, solution, answer, messages, '
    'system, body, which stands above the question, id); empty recognises the usual names',
  )
  seq_len: int = setting(1024, help='tokens in a packed row', at_least=2)
  batch_size: int = setting(128, help='packed rows in a step, over all hosts and micro-batches', at_least=1)
  share_prompts: bool = setting(
    False,
    help='pack several answers to one question into one segment, which holds the question once: the same loss in '
    'fewer tokens, where questions have several answers (data/shared_prompts.py)',
  )
  template: str = setting(
    'chatml',
    help='how conversations become text: chatml, own (the chat template of init), or a Jinja file; the run keeps it',
    path='path',
  )
  system_prompt: str = setting('', help='system turn before each question; not with a data.template that has its own')
  eval_examples: int | None = setting(
    None,
    help='examples held out of training, for the evaluation loss; 0 holds out none, None 256 or a tenth of the '
    'different prompts, whichever is fewer',
    at_least=0,
  )
  max_left_out: float = setting(
    0.05,
    help='share of the rows of a source that may be left out because they are malformed, too long or without loss; '
    'more of them end the run before it starts',
    at_least=0,
    at_most=1,
    changes_weights=False,
  )
  seed: int = setting(0, help='of the order of the data and of the choice of held-out examples', **SEED)
