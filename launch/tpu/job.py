"""A job: what runs, on which slice, within which limits. One TOML file, and nothing in it reaches a shell unquoted."""

import dataclasses
import difflib
import pathlib
import re
import tomllib
import types
import typing

from mathqwen.data import catalog, folders
from mathqwen.errors import UserError
from mathqwen.hardware import chips

ROOT = pathlib.Path(__file__).parents[2]  # of the checkout, which is what runs on the hosts
PROVISIONING = ('spot', 'on-demand', 'reserved', 'flex-start')
# Software of the TPU VMs: docs.cloud.google.com/tpu/docs/runtimes
RUNTIMES = {
  'v4': 'tpu-ubuntu2204-base',
  'v5e': 'v2-alpha-tpuv5-lite',
  'v5p': 'v2-alpha-tpuv5',
  'v6e': 'v2-alpha-tpuv6e',
}
ZONE = r'[a-z]+-[a-z]+\d+-([a-z]+\d+)?[a-z]'  # us-east5-a; an AI zone is us-south1-ai1b
DISK = rf'source=projects/[\w.:-]+/zones/({ZONE})/disks/[a-z][a-z0-9-]*(,mode=(read-only|read-write))?'
NAME = r'[a-z]([a-z0-9-]{0,38}[a-z0-9])?'
PATTERNS = {
  'name': (NAME, 'lowercase letters, digits and -, 40 at most, beginning with a letter'),
  'zone': (ZONE, 'a zone, such as us-east5-a'),
  'bucket': (
    r'gs://[a-z0-9][\w.-]+(/[\w.-]+)*|(/[\w.-]+)+',
    'gs://BUCKET/FOLDER with your bucket for BUCKET, or a directory that all hosts share',
  ),
  'config': (r'\w+|(?!/)(\w[\w-]*/)*\w[\w-]*\.py', 'a name in configs/, or the path of a .py file in this checkout'),
  'init': (
    r'([\w.:-]*/)*[\w.:-]*|(hf://)?[\w-][\w.-]*/[\w-][\w.-]*@[\w-][\w./-]*',
    'a name on the hub, perhaps with @REVISION, gs://..., or a path on the hosts',
  ),
  'reservation': (
    rf'([a-z][a-z0-9-]*|projects/[\w.:-]+/(locations/{ZONE}/)?reservations/[a-z][a-z0-9-]*)?',
    'the name of a reservation, or projects/PROJECT/locations/ZONE/reservations/NAME',
  ),
  'runtime_version': (r'([a-z0-9][a-z0-9.-]*)?', 'the name of a runtime'),
  'network': (r'[\w./-]*', 'the name of a network'),
  'subnetwork': (r'[\w./-]*', 'the name of a subnetwork'),
  'service_account': (r'([\w.-]+@[\w.-]+)?', 'the address of a service account'),
  'wait': (r'([1-9]\d*[smhd])?', 'a time, such as 6h'),
  'max_run': (r'([1-9]\d*[smhd])?', 'a time, such as 10h'),
  'grace': (r'([1-9]\d*[smhd])?', 'a time, such as 30m'),
}
RESERVED = ('data', 'init', 'launch')  # folders of the bucket that are not a job's
VARIABLE = r'[A-Za-z_]\w*'
# Variables by which the launcher and the TPU's runtime know a host: a job that sets them would not start.
NOT_YOURS = r'MATHQWEN_REHEARSAL|HOME|PATH|TPU_WORKER_\w+|MEGASCALE_\w+'
SECRET_NAME = r'[\w-]{1,255}(/versions/([1-9]\d*|latest))?'
SECRET_VARIABLE = r'HF_TOKEN|HUGGING_FACE_HUB_TOKEN|\w*(TOKEN|PASSWORD|SECRET|API_KEY|ACCESS_KEY)\w*'


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuJob:
  """The fields of a job file; the comment beside each says what it may be."""

  name: str  # of the run, its slice and its queued resource
  slice: str  # v5p-32, v6e-16, v5e-8, ...; 2xv5p-32 are two slices (multislice)
  zone: str = ''  # us-east5-a; where the slice is requested now, when zones are given
  zones: tuple[str, ...] = ()  # instead of zone: several, requested in turn until one has the slice
  bucket: str  # checkpoints go to BUCKET/NAME: gs://... in the zone's region, or a directory that all hosts share
  allow_other_region: bool = False  # a bucket outside of the zone's region: slower, and Google charges the traffic
  config: str  # what `mathqwen train` trains
  init: str = ''  # its --init; '' for the config's own
  set: tuple[str, ...] = ()  # its --set, each 'a.b=value'
  data: tuple[str, ...] = ()  # data sets by the names of `mathqwen data prepare`, and your own files: staged in BUCKET
  env: dict[str, str] = dataclasses.field(default_factory=dict)  # variables of the training process: {NAME = "value"}
  secrets: dict[str, str] = dataclasses.field(default_factory=dict)  # {HF_TOKEN = "NAME in Secret Manager"}
  provisioning: str = 'spot'  # spot, on-demand, reserved, flex-start
  reservation: str = ''  # of reserved: its name, or projects/PROJECT/locations/ZONE/reservations/NAME; '' for any
  queue: bool = True  # request a queued resource; false requests the TPU VM itself, which is there at once or fails
  wait: str = ''  # how long the request may wait in the queue: 6h; '' for any time
  max_run: str = ''  # of flex-start, at most 7d
  runtime_version: str = ''  # '' for the one that fits the generation
  network: str = ''
  subnetwork: str = ''
  internal_ips: bool = False  # hosts without public addresses; the network then needs a way to PyPI (Cloud NAT)
  iap: bool = False  # reach the hosts through Identity-Aware Proxy, from outside of their network
  data_disks: tuple[str, ...] = ()  # each 'source=projects/P/zones/Z/disks/D,mode=read-only', for you to mount
  service_account: str = ''
  price_per_chip_hour: float = 0.0  # in your currency; 0 leaves costs out
  max_cost: float = 0.0  # the run is saved and stopped and its slice deleted when it has cost this much; 0: no limit
  max_hours: float = 0.0  # the same for the hours of the slice
  grace: str = '15m'  # how long the hosts leave a slice without a run to a launcher, then remove it; '' leaves it
  max_tries: int = 20  # how many slices are requested and how often the run is started, the first included

  def __post_init__(self):
    self._choose_zone()
    for name, (pattern, wanted) in PATTERNS.items():
      if not re.fullmatch(pattern, getattr(self, name), re.ASCII):
        raise UserError(f'{name} = {getattr(self, name)!r}: {wanted} is expected')
    for setting in self.set:
      if not re.match(r'[a-z_]+(\.[a-z_0-9]+)*=', setting, re.ASCII) or not setting.isprintable():
        raise UserError(f"set has {setting!r}: write each as 'a.b=value'")
    for name in self.data:
      if name in catalog.prepared() and (why := catalog.get(name).withdrawn):
        raise UserError(
          f'data has {name!r}, which cannot be downloaded: {why}; copy yours into the bucket (gcloud storage cp -r '
          f'DIR/{name} {self.bucket}/data/), leave it out of data, and add "data.data_dir={self.bucket}/data" to set'
        )
      if name not in catalog.downloadable() and name not in self.files:
        known = ', '.join(catalog.downloadable())
        raise UserError(
          f'data has {name!r}: known are {known}, or name a file of yours, such as mine.jsonl, .json, .csv or .parquet'
        )
    if self.name in RESERVED:
      raise UserError(f'name = {self.name!r}: BUCKET/{self.name} is for all jobs; choose another name')
    if self.provisioning not in PROVISIONING:
      raise UserError(f'provisioning = {self.provisioning!r}: it must be one of {", ".join(PROVISIONING)}')
    for name in ('price_per_chip_hour', 'max_cost', 'max_hours'):
      if not 0 <= getattr(self, name) < float('inf'):
        raise UserError(f'{name} = {getattr(self, name)}: it must be at least 0 and finite')
    if self.max_tries < 1:
      raise UserError(f'max_tries = {self.max_tries}: it must be at least 1')
    if self.max_cost and not self.price_per_chip_hour:
      raise UserError('max_cost needs price_per_chip_hour, which says what a chip-hour costs you')
    self._check_variables()
    self._check_combinations()
    self._check_disks()

  def _choose_zone(self):
    """The first of `zones` is where the slice is requested first. UserError: when zones and zone disagree."""
    for zone in self.zones:
      if not re.fullmatch(ZONE, zone, re.ASCII) or self.zones.count(zone) > 1:
        raise UserError(f'zones has {zone!r}: different zones, such as us-east5-a, are expected')
    if self.zones and not self.zone:
      object.__setattr__(self, 'zone', self.zones[0])
    if self.zones and self.zone not in self.zones:
      raise UserError(f'zone = {self.zone!r} is not in zones: give one of the two')

  def _check_variables(self):
    """Refuses names that no process takes, and secrets that would be in the clear."""
    for name, value in self.env.items():
      if not re.fullmatch(VARIABLE, name, re.ASCII) or re.fullmatch(NOT_YOURS, name):
        raise UserError(f'env has {name!r}: it must be a name of letters, digits and _, not one of the launcher')
      if not value.isprintable():
        raise UserError(f'env has {name} = {value!r}: write it in one line, without control characters')
      if re.fullmatch(SECRET_VARIABLE, name, re.IGNORECASE):
        raise UserError(
          f'env has {name}, which would be in files and logs: use secrets = {{{name} = "its name in Secret Manager"}}'
        )
    for name, secret in self.secrets.items():
      if not re.fullmatch(VARIABLE, name, re.ASCII) or re.fullmatch(NOT_YOURS, name):
        raise UserError(f'secrets has {name!r}: it must be a name of letters, digits and _, not one of the launcher')
      if not re.fullmatch(SECRET_NAME, secret, re.ASCII):
        raise UserError(
          f'secrets has {name} = something that is not the name of a secret in Secret Manager: write "hf-token" or '
          '"hf-token/versions/3"; the value itself never goes into a file'
        )
    both = sorted(set(self.env) & set(self.secrets))
    if both:
      raise UserError(f'{both[0]} is in env and in secrets: leave it out of one')

  def _check_combinations(self):
    """Refuses, before anything is created, what Google would refuse or silently do differently."""
    chip, count = self.chip, self.slices
    kind = {runtime: name for name, runtime in RUNTIMES.items()}.get(self.runtime_version, chip.name)
    if kind not in (chip.name, 'v4'):  # v4's is a plain Ubuntu that every generation may use
      raise UserError(
        f'runtime_version = {self.runtime_version!r} is for {kind}, and slice {self.slice} is {chip.name}: '
        'leave it out to get the one that fits'
      )
    if chip.name == 'v4' and self.provisioning == 'flex-start':
      raise UserError("provisioning = 'flex-start' is for v5e, v5p and v6e: take spot, on-demand or reserved for v4")
    queued = {'wait': self.wait, 'a multislice': count > 1, 'flex-start': self.provisioning == 'flex-start'}
    for name, given in queued.items():
      if given and not self.queue:
        raise UserError(f'queue = false requests one TPU VM, and {name} needs a queued resource: queue = true')
    if self.provisioning == 'flex-start':
      if not self.max_run or duration_seconds(self.max_run) > duration_seconds('7d'):
        raise UserError("provisioning = 'flex-start' needs max_run, of 7d at most")
      if count > 1:
        raise UserError("provisioning = 'flex-start' gives one slice: take spot, on-demand or reserved for several")
    elif self.max_run:
      raise UserError(f"max_run is for provisioning = 'flex-start', and this is {self.provisioning!r}: use max_hours")
    if self.reservation and self.provisioning != 'reserved':
      raise UserError(f"reservation is for provisioning = 'reserved', and this is {self.provisioning!r}")
    place = re.search('/locations/([^/]+)/', self.reservation)
    if place and self.all_zones != (place[1],):
      raise UserError(f'reservation is in {place[1]}, and the slice is not: zone = {place[1]!r}')
    if self.subnetwork and not self.network:
      raise UserError('subnetwork needs the network that it is part of')

  def _check_disks(self):
    """UserError: when Google cannot attach one of `data_disks` to every host."""
    for disk in self.data_disks:
      written = re.fullmatch(DISK, disk, re.ASCII)
      if not written:
        raise UserError(
          f"data_disks has {disk!r}: write each as 'source=projects/PROJECT/zones/ZONE/disks/NAME,mode=read-only'"
        )
      if self.all_zones != (written[1],):
        raise UserError(f'data_disks has {disk!r}, and the slice may be elsewhere: zone = {written[1]!r}')
      if self.hosts * self.slices > 1 and not disk.endswith(',mode=read-only'):
        raise UserError(f'data_disks has {disk!r}: {self.slice} has several hosts, which need mode=read-only')

  def check_api(self) -> None:
    """UserError: when the Cloud TPU API has no such slice."""
    if self.chip.name not in RUNTIMES:
      raise UserError(
        f'slice = {self.slice!r}: {self.chip.name} is not in the Cloud TPU API; recipe --to gke, or gce, writes the '
        'commands of GKE (XPK) or of Compute Engine for it'
      )

  def in_zone(self, zone: str) -> 'TpuJob':
    """The same job with its slice in `zone`, one of `all_zones`."""
    return dataclasses.replace(self, zone=zone)

  @property
  def all_zones(self) -> tuple[str, ...]:
    """Where the slice may be, in the order in which it is requested."""
    return self.zones or (self.zone,)

  @property
  def region(self) -> str:
    """us-east5 for us-east5-a."""
    return self.zone.rpartition('-')[0]

  @property
  def where(self) -> chips.Slice:
    """The slices as `mathqwen plan` knows them."""
    return chips.slice_of(self.slice)

  @property
  def chip(self) -> chips.Chip:
    """The generation: v5e, v5p, ..."""
    return self.where.chip

  @property
  def slices(self) -> int:
    """How many slices the job has; more than one is a multislice."""
    return self.where.count

  @property
  def accelerator_type(self) -> str:
    """As Cloud TPU names one slice: v5litepod-16, and v5p-32 for 16 chips."""
    return self.where.accelerator_type

  @property
  def hosts(self) -> int:
    """Hosts of one slice."""
    return self.where.hosts_per_slice

  @property
  def nodes(self) -> list[str]:
    """The names of the TPU VMs in gcloud; each is one slice."""
    return [self.name] if self.slices == 1 else [f'{self.name}-{i}' for i in range(self.slices)]

  @property
  def workdir(self) -> str:
    """The --workdir of training."""
    return f'{self.bucket}/{self.name}'

  @property
  def files(self) -> list[str]:
    """The user's own files in `data`, on the launcher's machine."""
    return [name for name in self.data if re.fullmatch(r'[\w./ ~-]+', name) and folders.SUFFIX.search(name)]

  def train(self, settings: dict | None = None) -> list[str]:
    """The words of the training command, the same on every host. settings: chosen by `plan`."""
    chosen = [f'{name}={value}' for name, value in (settings or {}).items()]
    words = ['mathqwen', 'train', self.config, f'--workdir={self.workdir}', '--distributed', '--json']
    words += [f'--slice={self.slice}', '--platform=tpu']
    if self.init:
      words.append(f'--init={self.init}')
    return words + [f'--set={setting}' for setting in [*self.set, *chosen]]


def read(path: str) -> TpuJob:
  """The job in a TOML file. UserError: with the file's name, and the nearest field when one is unknown."""
  try:
    given = tomllib.loads(pathlib.Path(path).read_text())
  except FileNotFoundError:
    raise UserError(f'there is no job file {path}; copy launch/tpu/example.toml') from None
  except (ValueError, OSError, RecursionError) as error:  # TOML's and Unicode's errors are ValueErrors
    raise UserError(f'{path}: {error}; launch/tpu/example.toml shows how to write one') from None
  fields = typing.get_type_hints(TpuJob)
  for name, value in given.items():
    if name not in fields:
      near = difflib.get_close_matches(name, fields, n=1, cutoff=0)[0]
      raise UserError(f'{path}: there is no {name!r}; did you mean {near!r}?')
    given[name] = _typed(path, name, value, fields[name])
  missing = [
    field.name
    for field in dataclasses.fields(TpuJob)
    if field.name not in given
    and (field.default is field.default_factory or (field.name == 'zone' and 'zones' not in given))  # both MISSING
  ]
  if missing:
    raise UserError(f'{path}: {", ".join(missing)} must be given')
  try:
    return TpuJob(**given)
  except UserError as error:
    raise UserError(f'{path}: {str(error).replace("--topology", "slice")}') from None


def _typed(path: str, name: str, value: object, kind: type) -> object:
  """`value` as the field `name` takes it: a list becomes a tuple. UserError: when it has another type than `kind`."""
  if kind is float and type(value) is int:
    value = float(min(value, 10**300))
  if isinstance(kind, types.GenericAlias):
    if kind == dict[str, str]:
      if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise UserError(f'{path}: {name} must be a table of strings, such as {{NAME = "value"}}')
      return value
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
      raise UserError(f'{path}: {name} must be a list of strings, such as ["a", "b"]')
    return tuple(value)
  if type(value) is not kind:
    wanted = {str: 'a string in quotes', bool: 'true or false', float: 'a number', int: 'a whole number'}[kind]
    raise UserError(f'{path}: {name} = {value!r}: {wanted} is expected')
  return value


def duration_seconds(text: str) -> int:
  """Seconds of a time such as 6h."""
  return int(text[:-1]) * {'s': 1, 'm': 60, 'h': 3600, 'd': 86400}[text[-1]]
