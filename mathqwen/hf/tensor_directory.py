"""The tensors of a directory, whichever files they are in: one or several, of safetensors or of torch.save."""

import dataclasses
import pathlib
import re

import numpy as np

from mathqwen import files
from mathqwen.errors import UserError
from mathqwen.hf.tensor_files import SafetensorsReader
from mathqwen.hf.tensor_pickle import NoTable, Unsafe
from mathqwen.hf.torch_files import TorchReader

Reader = SafetensorsReader | TorchReader
Problem = tuple[str, str]  # (name of a file or tensor, what is wrong with it)

# The file that holds all tensors, by preference. Where there are several, 'FILE.index.json' says which has which.
MODEL = ('model.safetensors', 'pytorch_model.bin')
ADAPTER = ('adapter_model.safetensors', 'adapter_model.bin')
SINGLE = MODEL[0]
INDEX = f'{SINGLE}.index.json'
# What trainers put before every name: data parallelism, DeepSpeed, torch.compile.
_WRAPPERS = ('module.', '_forward_module.', '_orig_mod.')
_MOST_PROBLEMS = 40  # in one line
# How names begin of what trainers leave whose checkpoint is not put together yet, and what puts it together.
_UNFINISHED = {
  'pytorch_model_fsdp': 'FSDP has saved in parts: put them together with accelerate merge-weights',
  'global_step': 'DeepSpeed has saved in parts: put them together with zero_to_fp32.py, which it has put beside them',
}
_OTHER_FORMATS = ('.gguf', '.h5', '.msgpack', '.pth', '.pt', '.ot', '.npz')


@dataclasses.dataclass(frozen=True)
class StoredTensor:
  """A tensor in an open file."""

  reader: Reader
  name: str  # there

  @property
  def code(self) -> str:
    """Its dtype, as safetensors writes it."""
    return self.reader.tensors[self.name][0]

  @property
  def shape(self) -> tuple[int, ...]:
    """Its shape in the file."""
    return self.reader.tensors[self.name][1]

  def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
    """Rows `start` to `stop`, into the contiguous `out` when one of its dtype is given. ValueError: as the readers."""
    return self.reader.read(self.name, start, stop, out)


class TensorDirectory:
  """All files of a model or of an adapter in a directory, opened. `tensors`: those of all files by name.

  problems: files that cannot be read, and tensors that are not where the index says. UserError: when there is no
  reading on: an index is damaged, or a name is that of a device, for example.
  """

  def __init__(self, directory: files.AnyPath, singles: tuple[str, ...] = MODEL):
    """singles: MODEL or ADAPTER."""
    self.tensors: dict[str, StoredTensor] = {}
    self.problems: list[Problem] = []
    self._directory = directory
    self._readers: list[Reader] = []
    try:
      for file, indexed in sorted(self._file_names(singles).items()):
        self._open(file, indexed)
    except BaseException:
      self.close()
      raise

  def _file_names(self, singles: tuple[str, ...]) -> dict[str, list[str] | None]:
    """{file: the tensors that the index lists in it}; without an index, the one file has None."""
    for single in singles:
      index = self._directory / f'{single}.index.json'
      if files.is_there(index):
        return self._indexed(index, single)
      if files.is_there(self._directory / single):
        return {single: None}
    self.problems.append((singles[0], f'is missing: {self._remedy(singles)}'))
    return {}

  def _remedy(self, singles: tuple[str, ...]) -> str:
    names = sorted(path.name for path in self._directory.iterdir())
    for name in names:
      for begin, remedy in _UNFINISHED.items():
        if name.startswith(begin):
          return f'{name} is what {remedy}'
    others = [name for name in names if name.endswith(_OTHER_FORMATS)]
    if others:
      return f'{" or ".join(singles)} can be read, and {min(others)[:80]} is of another format; fetch one of them'
    return 'the download is not complete, fetch it'

  def _indexed(self, index: files.AnyPath, single: str) -> dict[str, list[str] | None]:
    weight_map = files.read_json_object(index).get('weight_map')
    if not isinstance(weight_map, dict) or not weight_map:
      raise UserError(f'{index} has no weight_map: fetch it again')
    if single not in weight_map.values() and files.is_there(self._directory / single):
      text = f'is there beside {index.name}, which does not name it: remove the one that you do not want'
      self.problems.append((single, text))
    tensors_of: dict[str, list[str] | None] = {str(file): [] for file in weight_map.values()}
    for tensor, file in weight_map.items():
      tensors_of[str(file)].append(tensor)
    return tensors_of

  def _open(self, file: str, indexed: list[str] | None) -> None:
    """Opens a file and adds its tensors. indexed: those that the index has in it."""
    # The index comes with the checkpoint, so it is not trusted: it must not name files outside of the directory.
    if pathlib.PurePath(file).name != file or len(file) > 200:
      self.problems.append((file[:200], 'is not the name of a file in the directory of the index'))
      return
    if not files.is_there(self._directory / file):
      self.problems.append((file, 'is missing: the download is not complete, fetch it'))
      return
    kind, form = (TorchReader, 'a file of torch.save') if file.endswith('.bin') else (SafetensorsReader, 'safetensors')
    try:
      reader = kind(self._directory / file)
    except Unsafe as error:
      self.problems.append((file, f'holds more than tensors ({error}): give a checkpoint in safetensors'))
      return
    except NoTable as error:
      self.problems.append((file, str(error)))
      return
    except ValueError as error:
      instead = files.not_the_file(_beginning(self._directory / file))
      self.problems.append((file, instead or f'cannot be read as {form} ({error}): is it half a file? Fetch it again'))
      return
    self._readers.append(reader)

    if indexed is not None:
      lost = sorted(set(indexed) - set(reader.tensors))
      unlisted = sorted(set(reader.tensors) - set(indexed))
      self.problems += [(name, f'is not in {file}, where the index has it') for name in lost]
      self.problems += [(name, f'is in {file}, and the index does not say so') for name in unlisted]
    for name in reader.tensors:
      plain = _without_wrappers(name)
      if plain in self.tensors:
        self.problems.append((plain, 'is in two files' if len(self._readers) > 1 else f'is in {file} twice'))
      self.tensors[plain] = StoredTensor(reader, name)

  def close(self) -> None:
    """Closes the files. Arrays that were read stay valid."""
    for reader in self._readers:
      reader.close()


def _beginning(path: files.AnyPath) -> bytes:
  """The first bytes of a file."""
  file = files.open_ranges(path)
  try:
    return file.read(0, 200)
  finally:
    file.close()


def has_weights(directory: files.AnyPath) -> bool:
  """Whether a directory has the weights of a model: those of an adapter alone are none."""
  return any(files.is_there(directory / name) for single in MODEL for name in (single, f'{single}.index.json'))


def _without_wrappers(name: str) -> str:
  while wrapper := next((wrapper for wrapper in _WRAPPERS if name.startswith(wrapper)), None):
    name = name.removeprefix(wrapper)
  return name


def merge_layers(problems: list[Problem]) -> list[str]:
  """One text for each problem, or for the same one in several layers.

  'model.layers.0-31.mlp.up_proj.weight is missing'
  """
  layers_of: dict[tuple[str, str], list[int]] = {}
  for name, problem in problems:
    match = re.search(r'\.(\d+)\.', name)
    pattern = name if match is None else f'{name[: match.start()]}.{{}}.{name[match.end() :]}'
    layer = 0 if match is None else int(match.group(1))
    layers_of.setdefault((pattern, problem), []).append(layer)
  texts = [f'{pattern.replace("{}", _ranges(layers))} {problem}' for (pattern, problem), layers in layers_of.items()]
  more = len(texts) - _MOST_PROBLEMS
  return texts if more <= 0 else [*texts[:_MOST_PROBLEMS], f'and {more:,} more']


def _ranges(numbers: list[int]) -> str:
  """'0-2,5' for [0, 1, 2, 5]."""
  runs: list[list[int]] = []  # [first, last] of consecutive numbers
  for number in sorted(numbers):
    if runs and number == runs[-1][1] + 1:
      runs[-1][1] = number
    else:
      runs.append([number, number])
  return ','.join(str(first) if first == last else f'{first}-{last}' for first, last in runs)
