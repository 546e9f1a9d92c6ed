"""Which examples are held out of training, for the evaluation loss."""

from collections.abc import Callable, Sequence

import numpy as np

from mathqwen.data import prompts
from mathqwen.data.encoded import Encoded, Examples, Joined, Without
from mathqwen.errors import UserError

_HELD_OUT = 256  # examples, where a config does not say how many


def hold_out(
  sources: Sequence[Examples], n: int | None, seed: int, pairs: bool = False
) -> tuple[list[Examples], Encoded]:
  """(training part of each source, held-out part): n examples with different prompts, drawn by `seed` from all sources.

  n: None is _HELD_OUT, or a tenth of the different prompts where that is fewer: at least one, unless there is just one.
  pairs: the examples are pairs (`data/pairs.py`), of which n are held out whole.

  Every example that shares a held-out prompt is removed from training, in every source. So when a held-out question has
  several answers, one is held out and the others are in neither part.

  With shards among the sources, the prompts that come first in the order of the seed (`prompts`) are held out: finding
  them does not read the others.
  UserError: when a source has no example left to train on.
  """
  if all(isinstance(source, Encoded) for source in sources):
    return _from_memory(sources, n, seed, together=2 if pairs else 1)
  return by_order(sources, n, seed)


def by_order(sources: Sequence[Examples], n: int | None, seed: int) -> tuple[list[Examples], Encoded]:
  """`hold_out` by the order of the seed, wherever the examples are."""
  indexes = [source.prompt_indexes() for source in sources]
  together = [index for of_source in indexes for index in of_source]
  if n is None:
    n = _default(prompts.count(together, enough=10 * _HELD_OUT))
  start = prompts.start_of(seed)
  chosen = prompts.first_prompts(together, start, n)

  removed: list[list[int]] = [[] for _ in sources]
  first: dict[int, tuple[int, int]] = {}  # prompt -> (source, index) of the first example with it
  for which, of_source in enumerate(indexes):
    for index in of_source:
      for prompt, found in prompts.examples_of(index, start, chosen).items():
        first.setdefault(prompt, (which, found[0]))
        removed[which] += found
  training: list[Examples] = [Without(source, gone) for source, gone in zip(sources, removed, strict=True)]
  _check_left(training, n, lambda: prompts.count(together, enough=sum(map(len, sources))))
  held_out = sorted(first.values())
  rendered = [sources[which][index] for which, index in held_out]
  return training, Encoded.from_rendered(rendered, [sources[which].where[index] for which, index in held_out])


def _default(different: int) -> int:
  """How many of so many different prompts are held out, where a config does not say."""
  return min(_HELD_OUT, max(different // 10, int(different > 1)))


def _check_left(training: Sequence[Examples], n: int, different: Callable[[], int]) -> None:
  """UserError: when a source has nothing left. different: how many different prompts there are."""
  if not all(map(len, training)):
    raise UserError(
      f'{n} held-out examples leave a source without any: the data has {different()} different prompts; '
      'lower data.eval_examples'
    )


def _from_memory(sources: Sequence[Encoded], n: int | None, seed: int, together: int) -> tuple[list[Encoded], Encoded]:
  """`hold_out` of sources in memory. together: how many examples with one prompt stand one after another."""
  hashes = [prompts.hash_of(source.prompt(index)) for source in sources for index in range(len(source))]
  # Groups of examples with one prompt are numbered by their first example.
  _, first, group = np.unique(np.array(hashes, np.uint64), return_index=True, return_inverse=True)
  if n is None:
    n = _default(len(first))
  drawn = np.argsort(first)[np.sort(np.random.default_rng(seed).permutation(len(first))[:n])]

  joined = Joined(sources)
  held_out = [example + i for example in first[drawn].tolist() for i in range(together)]
  removed = np.isin(group, drawn)
  training = []
  for which, source in enumerate(sources):
    start = joined.start(which)
    training.append(source.without(removed[start : start + len(source)]))
  _check_left(training, n, lambda: len(first))
  return training, Encoded.from_rendered(joined.read(held_out), joined.names(held_out))
