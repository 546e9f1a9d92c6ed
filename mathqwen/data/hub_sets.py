"""Data sets on the Hugging Face hub: hf:openai/gsm8k, hf://openai/gsm8k/main@REVISION, or a name of `published.SETS`.

It needs the `hf` extra.
"""

import re

from mathqwen import files
from mathqwen.data import dataset_cards, folders, published
from mathqwen.data.left_out import Report
from mathqwen.errors import UserError, report
from mathqwen.files import hub

# ORGANISATION/NAME, then the name of one of its configurations and a revision, both of which may be left out.
_NAME = re.compile(r'([\w.-]+/[\w.-]+)(?:/([\w.-]+))?(?:@([\w][\w./-]*))?')


def is_hub(source: str) -> bool:
  """Whether a source is on the hub."""
  return source.startswith(files.HUB_SHORT) or published.find(_plain(source)) is not None


def place(source: str) -> tuple[str, str | None, str | None] | None:
  """(ORGANISATION/NAME, configuration, revision) of a source on the hub; None when it does not have this form."""
  plain = _plain(source)
  known = published.find(plain)
  match = _NAME.fullmatch(known.hub if known else plain.removeprefix(files.HUB).removeprefix(files.HUB_SHORT))
  return match and match.groups()


def _plain(source: str) -> str:
  return source.removesuffix(published.ACCEPT)


def data_files(source: str, split: str, left_out: Report | None = None) -> list[files.AnyPath]:
  """The files of a split of a data set on the hub, downloaded first if necessary. Reports its licence.

  left_out: as in `folders.data_files`.
  source: hf://ORGANISATION/NAME[/CONFIGURATION][@REVISION], hf: for short; or a name. `published.ACCEPT` may follow.
  UserError: when the hub does not give them, the data set has several configurations and none is named, or its licence
  forbids commercial use.
  """
  plain, accepted = _plain(source), source.endswith(published.ACCEPT)
  named = place(source)
  if named is None:
    raise UserError(f'{source}: write {files.HUB}ORGANISATION/NAME, which /CONFIGURATION and @REVISION may follow')
  name, wanted, revision = named
  known = published.find(name)
  size = ''
  if known:  # before anything is fetched
    published.check_licence(plain, known.licence, accepted)
    wanted = wanted or known.configuration or None
    split = known.split if split == 'train' else split
    if revision is None:
      revision = known.revision or None
      size = f', {"" if revision else "about "}{known.rows:,} rows'

  folder = files.path(hub.fetch_data(name, revision))
  front = dataset_cards.front_matter(folder)
  stated = licence(folder, name)
  published.check_licence(plain, stated, accepted)
  at = f', revision {folder.name}' if re.fullmatch('[0-9a-f]{40}', folder.name) else ''
  report(f'{name}: licence {stated}{size}{at}')

  configurations = dataset_cards.configurations(front, folder)
  if not configurations:
    return folders.data_files(folder / wanted if wanted and (folder / wanted).is_dir() else folder, split, left_out)
  patterns = _choose(source, configurations, wanted or dataset_cards.default_of(front, configurations)).get(split)
  if patterns is None:
    raise UserError(f'{source} has no split {split!r}')
  found = dataset_cards.files_of(folder, patterns, folders.may_hold_records)
  if not found:
    raise UserError(f'{source}: its README names {", ".join(patterns)} for {split}, and there are no such files')
  folders.check_parts(found)
  return found


def licence(folder: files.AnyPath, name: str) -> str:
  """The licence of a data set that was fetched into a folder: that of its README, several with commas."""
  front = dataset_cards.front_matter(folder)
  known = published.find(name)
  return _stated(front) or (known.licence if known else 'not stated')


def _stated(front: dict) -> str:
  """The licence that the README states; '' for none."""
  stated = front.get('license_name') if front.get('license') in (None, 'other') else front['license']
  return ', '.join(map(str, stated)) if isinstance(stated, list) else str(stated or front.get('license') or '')


def _choose(source: str, configurations: dict[str, dict], chosen: str | None) -> dict[str, list[str]]:
  if chosen not in configurations:
    names = list(configurations)
    name = re.sub(r'@.*', '', source)
    raise UserError(f'{source} has the configurations {", ".join(names)}: name one, as {name.rstrip("/")}/{names[0]}')
  return configurations[chosen]
