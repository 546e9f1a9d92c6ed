"""What notebooks need: `%load_ext mathqwen`, the command line as %mathqwen, and what Colab and Kaggle do differently.

%mathqwen train gsm8k_0_5b --workdir {WORKDIR}

It runs in the process of the kernel, because only one process can use a TPU: once the kernel holds it, `!mathqwen`
finds none. A command that fails stops "Run all", which a failing `!` command does not. The functions below do, too.
"""

import contextlib
import importlib.util
import os
import shlex
from collections.abc import Callable, Iterable, Iterator

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

from mathqwen import cli, files
from mathqwen.errors import UserError

TOKEN = 'HF_TOKEN'  # the name of the secret, and of the variable that huggingface_hub reads
DRIVE = '/content/drive'
KAGGLE_OUTPUT = '/kaggle/working'


def run(line: str) -> None:
  """Runs `mathqwen LINE`; IPython has already filled in the {variables}. UsageError when the command fails."""
  try:
    status = cli.main(shlex.split(line))
  except SystemExit as end:  # of --help
    status = end.code
  if status:
    raise UsageError(f'mathqwen ended with status {status}; the reason is printed above')


def load(shell: InteractiveShell) -> None:
  """Registers %mathqwen in the IPython shell."""
  shell.register_magic_function(run, magic_name='mathqwen')


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
  """Raises UsageError, which notebooks show in one line, for a UserError."""
  try:
    yield
  except UserError as error:
    raise UsageError(str(error)) from None


def start(platform: str) -> None:
  """Starts JAX's devices, 'tpu', 'gpu' or 'cpu', and prints what they are. UsageError: why that is impossible."""
  from mathqwen.hardware import devices

  with _one_line():
    try:
      devices.choose(platform)
      devices.start()
    except UserError as error:
      if platform != 'tpu':
        raise
      raise UserError(
        f'{error}. Colab: Runtime > Change runtime type > v5e-1 TPU or v6e-1 TPU; Kaggle: Settings > Accelerator > TPU '
        'v5e-8; then Run all. Or try the notebook with TINY = True'
      ) from None
    print(devices.describe())


def use_token() -> None:
  """Gives huggingface_hub the token that Colab or Kaggle keeps as the secret HF_TOKEN. Says so; never prints it.

  Models that are open to all, such as Qwen's, need none.
  """
  if os.environ.get(TOKEN):
    print(f'{TOKEN}: from the environment')
    return
  for place, read in {'Colab': _colab_secret, 'Kaggle': _kaggle_secret}.items():
    try:
      token = read()
    except Exception as error:  # of services that this process cannot know: not granted, not there, no answer
      print(f"{TOKEN}: not taken from {place}'s secrets ({type(error).__name__})")
      continue
    if token:
      os.environ[TOKEN] = token
      print(f"{TOKEN}: from {place}'s secrets")
      return
  print(f'no {TOKEN}: models that are open to all need none')


def _colab_secret() -> str | None:
  if not _has('google.colab'):
    return None
  from google.colab import userdata

  return userdata.get(TOKEN)


def _kaggle_secret() -> str | None:
  if not _has('kaggle_secrets'):
    return None
  from kaggle_secrets import UserSecretsClient

  return UserSecretsClient().get_secret(TOKEN)


def _has(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except (ImportError, ValueError):  # the package above it is missing, or it is no real module
    return False


def fetch(needs: Iterable[str]) -> None:
  """Downloads models and data sets that are not on this machine yet.

  needs: names of data sets (gsm8k), names on the Hugging Face hub (Qwen/Qwen3-0.6B), and paths, which are left alone.
  UsageError: when one cannot be had.
  """
  from mathqwen.data import catalog
  from mathqwen.files import hub

  with _one_line():
    for need in needs:
      if need in catalog.downloadable():
        run(f'data prepare {need}')
      elif name := hub.name_of(need):
        print(f'{need}: {hub.fetch(name)}')


def keep(where: str, folder: str) -> str:
  """The path of `folder` in the place where work is kept, and says what becomes of it when the session ends.

  where: 'drive', your Google Drive (Colab); gs://BUCKET/FOLDER; or '', this machine's disk.
  UsageError: when this notebook has no such place.
  """
  keepers: dict[str, Callable[[str, str], str]] = {'': _keep_here, 'drive': _keep_on_drive}
  keeper = _keep_in_bucket if where.startswith(files.GCS) else keepers.get(where)
  if keeper is None:
    raise UsageError(f"KEEP = {where!r}: write 'drive', 'gs://BUCKET/FOLDER', or '' for this machine's disk")
  return keeper(where, folder)


def _keep_here(where: str, folder: str) -> str:
  here = os.path.abspath(folder)
  if here.startswith(f'{KAGGLE_OUTPUT}/'):
    print(f'{here}: Kaggle keeps it only in a version that you save (Save Version, 20 GB at most)')
  else:
    print(
      f'{here}: on the disk of this machine. A hosted session deletes it when it ends: copy what you need before, or '
      'set KEEP'
    )
  return folder


def _keep_on_drive(where: str, folder: str) -> str:
  if not _has('google.colab'):
    raise UsageError("KEEP = 'drive' is for Colab: write a folder of a bucket, 'gs://BUCKET/FOLDER', or ''")
  from google.colab import drive

  drive.mount(DRIVE)
  path = f'{DRIVE}/MyDrive/mathqwen/{folder}'
  print(f'{path}: on your Google Drive, which keeps it; a checkpoint needs as much free space there')
  return path


def _keep_in_bucket(where: str, folder: str) -> str:
  if not _has('gcsfs'):
    raise UsageError(f'KEEP = {where!r} needs gcsfs: run %pip install gcsfs')
  if _has('google.colab'):
    from google.colab import auth

    auth.authenticate_user()
  path = f'{where.rstrip("/")}/{folder}'
  print(f'{path}: in the bucket, which keeps it')
  return path
