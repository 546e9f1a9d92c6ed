"""Models by their name on the Hugging Face hub. Downloading needs the `hf` extra."""

import pathlib
import re

from mathqwen.errors import UserError, report
from mathqwen.files.naming import HUB

# Weights, configs and tokenizer files. No code: none is ever run.
FILES = ('*.safetensors', '*.json', '*.txt', '*.tiktoken', 'tokenizer.model', '*.jinja')
# Weights in the format of torch.save, where there are none in safetensors; not what trainers leave beside them.
TORCH_FILES = ('pytorch_model*.bin', 'adapter_model.bin')
# Of a data set: records, and the README that says which of them belong together.
DATA_FILES = (
  '*.parquet', '*.pq', '*.arrow', '*.feather', '*.json*', '*.ndjson*', '*.csv*', '*.tsv*', 'README.md',
)  # fmt: skip


def name_of(path: str) -> str | None:
  """The name on the hub that a MODEL means, or None when it is a path.

  'Qwen/Qwen2.5-0.5B' for 'hf://Qwen/Qwen2.5-0.5B'. Also for 'Qwen/Qwen2.5-0.5B' itself, unless it or its folder is on
  this disk: then it is a path, perhaps a misspelt one. '@REVISION' may follow: a branch, a tag or a commit.
  UserError: when the text after hf:// is not ORGANISATION/NAME.
  """
  name = path.removeprefix(HUB)
  has_prefix = name != path
  if not re.fullmatch(r'[\w-][\w.-]*/[\w-][\w.-]*(@[\w-][\w./-]*)?', name):
    if has_prefix:
      raise UserError(f'{path} is not a name on the hub, which @REVISION may follow: write {HUB}ORGANISATION/NAME')
    return None
  if has_prefix:
    return name
  local = pathlib.Path(without_revision(path))
  return None if local.exists() or local.parent.exists() else name


def fetch_data(name: str, revision: str | None) -> str:
  """Downloads the files of a data set that are not in the hub's cache yet. Returns the directory with the files.

  UserError: as `fetch`.
  """
  report(f'{name}: from the Hugging Face hub, or its cache on this disk')
  return _snapshot(name, revision, DATA_FILES, repo_type='dataset')


def without_revision(name: str) -> str:
  """'Qwen/Qwen2.5-0.5B' for 'Qwen/Qwen2.5-0.5B@REVISION'."""
  return name.partition('@')[0]


def cached(name: str) -> str | None:
  """The directory in the hub's cache with the files of a model, without asking the hub; None when it has none.

  name: as `name_of` returns it.
  """
  try:
    import huggingface_hub
    from huggingface_hub import errors
  except ImportError:
    return None
  repository, _, revision = name.partition('@')
  try:
    return huggingface_hub.snapshot_download(repository, revision=revision or None, local_files_only=True)
  except (errors.LocalEntryNotFoundError, errors.HFValidationError, OSError):
    return None


def fetch(name: str) -> str:
  """Downloads the files of a model that are not in the hub's cache yet. Returns the directory with the files.

  name: as `name_of` returns it; without a revision, the newest.
  UserError: when huggingface_hub is not installed, or the hub does not give the files.
  """
  repository, _, revision = name.partition('@')
  report(f'{name}: from the Hugging Face hub, or its cache on this disk')
  folder = _snapshot(repository, revision or None, FILES)
  if not any(pathlib.Path(folder).glob('*.safetensors')):
    folder = _snapshot(repository, revision or None, (*FILES, *TORCH_FILES))
  return folder


def _snapshot(name: str, revision: str | None, patterns: tuple[str, ...], **options: str) -> str:
  """The directory with the files of a repository that match. options: further ones of `snapshot_download`."""
  try:
    import huggingface_hub
    from huggingface_hub import errors
    from huggingface_hub.utils import logging
  except ImportError:
    raise UserError(
      f"no directory {name}; to fetch it from the Hugging Face hub, pip install 'mathqwen[hf]' first"
    ) from None
  if revision is not None:
    options['revision'] = revision
  logging.set_verbosity_error()  # it has a line for each retry
  try:
    return huggingface_hub.snapshot_download(name, allow_patterns=list(patterns), **options)
  except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.HFValidationError, OSError) as error:
    # What follows says of every failure that it may be the network.
    reason = ' '.join(str(error).split()).partition(' An error happened')[0][:200]
    raise UserError(
      f'no directory {name}, and the Hugging Face hub did not give it ({type(error).__name__}: {reason}): '
      'look at the name, the network and your access, or fetch it elsewhere and name the directory'
    ) from None
