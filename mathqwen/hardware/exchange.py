"""How the hosts of one run exchange text and announce that they end.

Two classes with the same methods: `KeyValueExchange` where JAX shows its coordination service (`jax_internals`), else
`DeviceExchange`, on public API alone.
"""

import contextlib
import json
import threading
import time

from mathqwen.hardware.jax_internals import CoordinationClient

_ENDS = 'mathqwen/ends'  # {host: [exit status, line]}
_TOLD = 'mathqwen/told'  # {topic: {host: text}}
_VALUES = 'mathqwen/values'  # {name: {'present': {host: number of parts}, host: {part: text}}}
PART_CHARACTERS = 2**20  # of one value in the store: gRPC takes messages of 4 MiB
_POLL_SECONDS = 10  # signals are handled between two waits of this length


class LateHosts(Exception):
  """The hosts `missing` had not put down their text in time."""

  def __init__(self, missing: list[int]):
    super().__init__(f'missing: {missing}')
    self.missing = missing


class KeyValueExchange:
  """Through host 0's key-value store. Without devices, whose collectives have time limits: this waits as long as asked.

  index, count: this host's number, and how many hosts there are.
  """

  has_store = True  # `tell` and `told` work, and `gather` uses no device

  def __init__(self, client: CoordinationClient, index: int, count: int):
    self.index, self.count = index, count
    self._client = client

  def gather(self, name: str, text: str, seconds: float | None = None) -> list[str]:
    """Every host's ASCII `text` of this `name`, in the order of the hosts.

    seconds: LateHosts when one has not come by then; None waits for as long as it takes.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    self._put(name, text)
    texts = []
    for host in range(self.count):
      found = self._take(name, host, deadline)
      if found is None:
        present = self._client.list(f'{_VALUES}/{name}/present')
        raise LateHosts([host for host in range(self.count) if str(host) not in present])
      texts.append(found)
    return texts

  def forget(self, name: str):
    """Frees the memory of the texts of `name`, once every host has read them."""
    if self.index == 0:
      self._client.delete(f'{_VALUES}/{name}')

  def announce_end(self, status: int, line: str):
    """Tells the other hosts that this one ends, and why."""
    self._announce(f'{_ENDS}/{self.index}', json.dumps([status, line]))

  def ends(self) -> dict[int, tuple[int, str]]:
    """{host: (exit status, line)} of the other hosts that have ended."""
    ends = {host: tuple(json.loads(text)) for host, text in self._announced(_ENDS).items()}
    ends.pop(self.index, None)
    return ends

  def tell(self, topic: str, text: str):
    """Puts down a text for all hosts, without waiting for them."""
    self._announce(f'{_TOLD}/{topic}/{self.index}', text)

  def told(self, topic: str) -> dict[int, str]:
    """{host: text}: what the hosts have put down so far, this one included."""
    return self._announced(f'{_TOLD}/{topic}')

  def _announce(self, key: str, text: str):
    from jax.errors import JaxRuntimeError

    # When it fails, host 0 is gone, and with it the store: there is no way to tell the others.
    with contextlib.suppress(JaxRuntimeError):
      self._client.set(key, text)

  def _announced(self, folder: str) -> dict[int, str]:
    from jax.errors import JaxRuntimeError

    try:
      return {int(host): text for host, text in self._client.list(folder).items()}
    except JaxRuntimeError:  # host 0 is gone: the C++ client will say so
      return {}

  def wait_for_ends(self, seconds: float):
    """On host 0, waits until the others have ended too: the store goes with it, and they would not learn why."""
    deadline = time.monotonic() + seconds
    while self.index == 0 and len(self.ends()) < self.count - 1 and time.monotonic() < deadline:
      time.sleep(0.1)

  def _put(self, name: str, text: str):
    parts = [text[start : start + PART_CHARACTERS] for start in range(0, len(text), PART_CHARACTERS)]
    for number, part in enumerate(parts):
      self._client.set(f'{_VALUES}/{name}/{self.index}/{number}', part)
    # Last: whoever sees it may read all parts.
    self._client.set(f'{_VALUES}/{name}/present/{self.index}', str(len(parts)))

  def _take(self, name: str, host: int, deadline: float | None) -> str | None:
    """The text that `host` put there, or None after the deadline."""
    number_of_parts = self._wait_for(f'{_VALUES}/{name}/present/{host}', deadline)
    if number_of_parts is None:
      return None
    parts = [self._wait_for(f'{_VALUES}/{name}/{host}/{number}') for number in range(int(number_of_parts))]
    return ''.join(parts)

  def _wait_for(self, key: str, deadline: float | None = None) -> str | None:
    while True:
      left = _POLL_SECONDS if deadline is None else min(_POLL_SECONDS, max(0, deadline - time.monotonic()))
      found = self._client.get(key, left)
      if found is not None or (deadline is not None and time.monotonic() >= deadline):
        return found


class DeviceExchange:
  """Over the devices, by `jax.experimental.multihost_utils`: for a JAX whose key-value store cannot be reached.

  A host that is late is noticed by the runtime's own time limit for collectives, and no host learns why another one
  ended: it is lost then.
  """

  has_store = False

  def __init__(self):
    import jax

    self.index, self.count = jax.process_index(), jax.process_count()

  def gather(self, name: str, text: str, seconds: float | None = None) -> list[str]:
    """As in `KeyValueExchange`, but `name` and `seconds` are not used: all hosts must call in the same order."""
    import numpy as np
    from jax.experimental.multihost_utils import process_allgather

    data = np.frombuffer(text.encode('ascii'), np.uint8)
    sizes = process_allgather(np.int32(len(data)))
    padded = np.zeros(max(sizes), np.uint8)  # every host's array must have the same shape
    padded[: len(data)] = data
    rows = process_allgather(padded)
    return [bytes(row[:size]).decode('ascii') for row, size in zip(rows, sizes, strict=True)]

  def forget(self, name: str):
    """Does nothing: no text is kept."""

  def announce_end(self, status: int, line: str):
    """Does nothing: without a store there is no way to tell the others."""

  def ends(self) -> dict[int, tuple[int, str]]:
    """Always empty: no host learns about another's end."""
    return {}

  def wait_for_ends(self, seconds: float):
    """Lets the hosts that fail together say so: host 0, which holds the service, must not be gone before that."""
    import jax

    # In a thread, because `shutdown` waits for minutes when only this host ends.
    thread = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    thread.start()
    thread.join(seconds)

  def tell(self, topic: str, text: str):
    """Does nothing, for the same reason."""

  def told(self, topic: str) -> dict[int, str]:
    """Always empty."""
    return {}
