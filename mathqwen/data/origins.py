"""Where the rows of a source come from, and their licence: for data cards, and for what a run records."""

import re
from collections.abc import Sequence

from mathqwen import files
from mathqwen.data import catalog, hub_sets, published, tfds_sets

# A file in the cache of huggingface_hub, whose folder has the name of the commit.
_SNAPSHOT = re.compile(r'datasets--([^/]+)--([^/]+)/snapshots/([0-9a-f]{40})(?=/)')


def of(source: str, paths: Sequence[files.AnyPath] = ()) -> dict[str, str]:
  """What is known of a source: `licence`; also `name` and `revision`, where it is on the hub or TFDS prepared it.

  paths: its files, as far as they are found already.
  """
  data = catalog.of_source(source)
  if data is not None:
    return {'licence': data.licence}
  path = str(paths[0]) if paths else ''
  if match := _SNAPSHOT.search(path):
    name = f'{match[1]}/{match[2]}'
    return {'name': name, 'revision': match[3], 'licence': hub_sets.licence(files.path(path[: match.end()]), name)}
  if tfds_sets.FILE.search(path):
    return tfds_sets.origin(paths[0])
  place = hub_sets.place(source) if hub_sets.is_hub(source) else None
  known = published.find(place[0]) if place else None
  return {'name': known.hub, 'licence': known.licence} if known else {}
