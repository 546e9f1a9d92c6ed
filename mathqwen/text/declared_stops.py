"""The stop ids that a Hugging Face directory declares: `eos_token_id` of generation_config.json and of config.json.

transformers ends an answer at any id of generation_config.json's `eos_token_id`, a number or a list, and looks into
config.json where there is none. Chat models often differ in them: Llama 3's config.json names <|end_of_text|> alone,
its generation_config.json <|eot_id|> too, with which its turns end.
"""

from mathqwen import files as files_lib
from mathqwen.errors import UserError, report

# In the order of trust. The first also stands in the tokenizer folder of a run: see `Tokenizer.files_in`.
FILES = ('generation_config.json', 'config.json')
_MOST = 256  # ids in one file: decoding compares every token with each of them


def read(directory: files_lib.AnyPath) -> tuple[int, ...]:
  """The ids in the files of a directory, the most trusted first; () where none is declared.

  UserError: when an `eos_token_id` is neither an id nor a list of ids.
  """
  found: list[int] = []
  for name in FILES:
    file = directory / name
    if files_lib.is_there(file):
      found += _ids_in(file)
  return tuple(dict.fromkeys(found))


def _ids_in(file: files_lib.AnyPath) -> list[int]:
  declared = files_lib.read_json_object(file).get('eos_token_id')
  if declared is None:
    return []
  ids = declared if isinstance(declared, list) else [declared]
  if len(ids) > _MOST or not all(type(token_id) is int for token_id in ids):
    raise UserError(
      f'{file}: eos_token_id is {str(declared)[:60]}: it must be the id at which answers end, or a list of a few ids'
    )
  for token_id in ids:
    if token_id < 0:
      report(f'{file}: eos_token_id has {token_id}, which is no id: it is ignored')
  return [token_id for token_id in ids if token_id >= 0]
