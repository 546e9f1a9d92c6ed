"""The Python face of mathqwen, for notebooks and programs: what the commands do, as functions.

They return what the commands print with `--json`, and raise `UserError` where the commands would print a line and exit.
"""

import argparse
import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping

from mathqwen import files
from mathqwen.commands import evaluate as evaluate_command
from mathqwen.commands import train as train_command
from mathqwen.config import Experiment
from mathqwen.errors import UserError, explain_os_error
from mathqwen.inference.model import Model, load

__all__ = ['Model', 'evaluate', 'load', 'train']


def train(
  config: str | os.PathLike | Experiment | None = None,
  workdir: str | os.PathLike | None = None,
  init: str | os.PathLike | None = None,
  settings: Mapping[str, object] | None = None,
  *,
  data_dir: str | os.PathLike | None = None,
  profile: int | None = None,
  strict: bool = False,
  platform: str | None = None,
  reproduce: str | os.PathLike | None = None,
) -> dict:
  """Trains `config`, or continues the run in `workdir`, as `mathqwen train CONFIG --workdir DIR` does.

  Args:
    config: the name of an experiment in configs/, the path of a Python file that defines `config`, or an Experiment.
    workdir: where checkpoints, metrics and the resolved config go; may be a URL such as gs://BUCKET/RUN.
    init: the MODEL to start from: a Hugging Face directory, a name on its hub, or another run's workdir. 'random'
      starts from random weights; None does what the config says.
    settings: settings to change, {'train.steps': 100, ...}; `mathqwen configs NAME` lists them.
    data_dir: a copy of the data sets, local or gs://.
    profile: number of steps to trace into WORKDIR/profile.
    strict: refuse a damaged newest checkpoint, instead of using the one before it.
    platform: 'tpu', 'gpu' or 'cpu'; None takes what JAX_PLATFORMS names, else the TPU or GPU of this machine.
    reproduce: instead of `config`: a checkpoint, or a run's workdir, whose run is made again in `workdir`. The result
      then has `reproduce`: whether the batches and losses are those of the original.

  Returns:
    `step`, `loss` (nats per loss token), `tokens_per_second`, `step_seconds`, `checkpoint` (its path) and more: the
    JSON of the command.

  Raises:
    UserError: when the user can fix something: a setting, a path, the data, a full disk, devices that are in use.
    Preempted: when SIGTERM or an interrupt (Ctrl-C) stopped the run, once it has saved; the same call continues it.
  """
  if workdir is None:
    raise UserError('train needs workdir, where checkpoints and metrics go')
  options = argparse.Namespace(
    config=config if isinstance(config, Experiment | None) else os.fspath(config),
    reproduce=_path_text(reproduce),
    settings=settings or {},
    init=_path_text(init),
    data_dir=_path_text(data_dir),
    workdir=_path_text(workdir),
    profile=profile,
    strict=strict,
    dry_run=False,
    platform=platform,
    distributed=None,
    slice=None,
  )
  with _as_user_errors():
    return train_command.train(options)


def evaluate(
  model: Model | str | os.PathLike,
  benchmarks: str | Iterable[str],
  *,
  data_dir: str | os.PathLike | None = None,
  limit: int | None = None,
  limit_seed: int | None = None,
  prompt: str | None = None,
  template: str | os.PathLike | None = None,
  system: str | None = None,
  rule: str | None = None,
  out: str | os.PathLike | None = None,
  columns: Mapping[str, str] | None = None,
  against: str | Iterable[str] = (),
  max_new_tokens: int | None = None,
  max_thinking_tokens: int | None = None,
  batch_size: int | None = None,
  dtype: str | None = None,
  weights: str | None = None,
  samples: int | None = None,
  temperature: float | None = None,
  top_p: float | None = None,
  top_k: int | None = None,
  seed: int | None = None,
  cache_dtype: str | None = None,
  concurrency: int | None = None,
  requests_per_minute: float | None = None,
  timeout: float | None = None,
  request_json: Mapping | None = None,
  platform: str | None = None,
) -> dict:
  """Answers the problems of benchmarks and grades the answers, as `mathqwen evaluate MODEL` does.

  Args:
    model: a `Model`, as `load` returns it; or what the command takes: a Hugging Face directory, a name on its hub, a
      run's workdir, or 'openai:URL#NAME' for a served model.
    benchmarks: their names, ['gsm8k', 'math500'] or 'gsm8k,math500'; also files of problems, with `rule`.
    columns: of files with other names for their columns, {'question': 'prob', 'answer': 'gold'}.
    against: training data; problems that they hold are marked, and the scores have the accuracy without them.
    out: the directory where records and scores go; the same call continues there.
    template: how turns become text: 'chatml', 'own' or a Jinja file; None takes the model's.
    system: the system turn before each question; None takes the model's.
    dtype: of weights and activations, weights: 'int8' or None, for a path; a `Model` has its own.
    The others: as the flags of the command, see `mathqwen evaluate --help`; None takes the command's default.

  Returns:
    {'benchmarks': {name: scores}, 'tokens_per_second': ...}: the JSON of the command. Scores hold `n`, `correct`,
    `accuracy` (a fraction of 1), `stderr`, `unextractable`, `truncated`, `rule`, `prompt` and more.

  Raises:
    UserError: when the user can fix something: a name, a path, an argument, the data.
  """
  # Every parameter has the name of its flag, so all of them together are the command's arguments.
  options = argparse.Namespace(**locals(), distributed=None, slice=None)
  options.against = [against] if isinstance(against, str) else list(against)
  options.map = [f'{field}={column}' for field, column in (columns or {}).items()]
  options.model = _path_text(model) if isinstance(model, str | os.PathLike) else model
  options.data_dir, options.out, options.template = _path_text(data_dir), _path_text(out), _path_text(template)
  with _as_user_errors():
    return evaluate_command.evaluate(options)


def _path_text(path: str | os.PathLike | None) -> str | None:
  """The text of a path. UserError: when it has a scheme that is not read or written."""
  if path is None:
    return None
  text = os.fspath(path)
  if not text.startswith(('openai:', files.HUB)):
    files.check(text)
  return text


@contextlib.contextmanager
def _as_user_errors() -> Iterator[None]:
  """Raises UserError for an error of the operating system that the user can fix, as the command line reports it.

  Also keeps TFDS, grain and orbax from logging a traceback for every error that they raise, and asyncio for every part
  of a checkpoint whose writing failed.
  """
  loggers = [logging.getLogger(name) for name in ('absl', 'asyncio')]
  levels = [logger.level for logger in loggers]
  for logger in loggers:
    logger.setLevel(logging.CRITICAL)
  try:
    yield
  except OSError as error:
    message = explain_os_error(error)
    if message is None:
      raise
    raise UserError(message) from error
  finally:
    for logger, level in zip(loggers, levels, strict=True):
      logger.setLevel(level)
