"""Job files: what is read, what is refused, and that a shell sees everything in them as plain text."""

import dataclasses
import os
import pathlib
import shlex
import subprocess
import sys

import pytest

from launch.tpu import cloud, commands, facts, job
from mathqwen.errors import UserError

DISK = 'source=projects/p/zones/us-east5-a/disks/d,mode=read-only'
EXAMPLE = pathlib.Path(job.__file__).parent / 'example.toml'


def test_the_example_is_a_job_once_it_names_a_bucket(tmp_path):
  with pytest.raises(UserError, match="bucket = 'gs://BUCKET/runs': gs://BUCKET/FOLDER with your bucket"):
    job.read(str(EXAMPLE))
  (tmp_path / 'job.toml').write_text(EXAMPLE.read_text().replace('BUCKET', 'your-bucket'))
  found = job.read(str(tmp_path / 'job.toml'))
  assert (found.accelerator_type, found.hosts, found.nodes) == ('v5p-32', 4, ['math-7b'])
  assert found.workdir == 'gs://your-bucket/runs/math-7b'


@pytest.mark.parametrize(
  'slice, accelerator, hosts, nodes, runtime',
  [
    ('v4-32', 'v4-32', 4, ['math-7b'], 'tpu-ubuntu2204-base'),
    ('v5e-1', 'v5litepod-1', 1, ['math-7b'], 'v2-alpha-tpuv5-lite'),
    ('v5e-8', 'v5litepod-8', 1, ['math-7b'], 'v2-alpha-tpuv5-lite'),
    ('v5litepod-16', 'v5litepod-16', 4, ['math-7b'], 'v2-alpha-tpuv5-lite'),
    ('v5p-8', 'v5p-8', 1, ['math-7b'], 'v2-alpha-tpuv5'),
    ('v6e-256', 'v6e-256', 64, ['math-7b'], 'v2-alpha-tpuv6e'),
    ('v5p-12288', 'v5p-12288', 1536, ['math-7b'], 'v2-alpha-tpuv5'),
    ('v4-384', 'v4-384', 48, ['math-7b'], 'tpu-ubuntu2204-base'),
    ('2xv5p-32', 'v5p-32', 4, ['math-7b-0', 'math-7b-1'], 'v2-alpha-tpuv5'),
    ('2xv4-16', 'v4-16', 2, ['math-7b-0', 'math-7b-1'], 'tpu-ubuntu2204-base'),
  ],
)
def test_names_of_slices(job_file, slice, accelerator, hosts, nodes, runtime):
  found = job.read(job_file(f'slice = "{slice}"'))
  assert (found.accelerator_type, found.hosts, found.nodes) == (accelerator, hosts, nodes)
  line = commands.create(found)
  assert f'--accelerator-type={accelerator}' in line and f'--runtime-version={runtime}' in line
  assert ('--node-id=math-7b' in line) == (len(nodes) == 1)
  assert ({'--node-count=2', '--node-prefix=math-7b'} <= set(line)) == (len(nodes) == 2)


@pytest.mark.parametrize(
  'lines, flags, without',
  [
    (['provisioning = "spot"'], ['--spot'], ['--reserved']),
    (['provisioning = "on-demand"'], [], ['--spot', '--reserved', '--provisioning-model=flex-start']),
    (['provisioning = "reserved"', 'wait = "6h"'], ['--reserved', '--valid-until-duration=6h'], ['--spot']),
    (
      ['provisioning = "flex-start"', 'max_run = "10h"'],
      ['alpha', '--provisioning-model=flex-start', '--max-run-duration=10h'],
      ['--spot'],
    ),
    (['runtime_version = "tpu-ubuntu2204-base"'], ['--runtime-version=tpu-ubuntu2204-base'], []),
    (['queue = false'], ['tpu-vm', '--version=v2-alpha-tpuv5', '--spot'], ['--runtime-version=v2-alpha-tpuv5']),
    (
      ['network = "n"', 'subnetwork = "s"', 'internal_ips = true', 'service_account = "a@b.c"'],
      ['--network=n', '--subnetwork=s', '--internal-ips', '--service-account=a@b.c'],
      [],
    ),
    (
      ['provisioning = "reserved"', 'reservation = "mine"'],
      ['alpha', '--reserved', '--reservation=mine'],
      ['--spot'],
    ),
    ([f'data_disks = ["{DISK}"]'], [f'--data-disk={DISK}'], ['alpha']),
  ],
)
def test_flags_of_create(job_file, lines, flags, without):
  line = commands.create(job.read(job_file(*lines)))
  assert set(flags) <= set(line) and not set(without) & set(line)
  assert line[: 1 + line.index('create')][-2] == ('tpu-vm' if lines == ['queue = false'] else 'queued-resources')


@pytest.mark.parametrize(
  'line, message',
  [
    ('zoen = "us-east5-a"', "there is no 'zoen'; did you mean 'zone'?"),
    ('zone = 5', 'zone = 5: a string in quotes is expected'),
    ('zone = "us-east5"', "zone = 'us-east5': a zone, such as us-east5-a is expected"),
    ('zone = "us-east5-1a"', "zone = 'us-east5-1a': a zone, such as us-east5-a is expected"),
    ('zones = ["us-east5"]', "zones has 'us-east5': different zones"),
    ('zones = ["us-east5-b", "us-east5-b"]', "zones has 'us-east5-b': different zones"),
    ('zones = ["us-east5-b", "us-east5-c"]', "zone = 'us-east5-a' is not in zones"),
    ('slice = "v5p-33"', 'slice v5p-33: v5p slices have sizes 8, 16, 32'),
    ('slice = "h100-8"', 'slice h100-8: write KIND-SIZE'),
    ('name = "Math_7B"', "name = 'Math_7B': lowercase letters"),
    ('name = "x; rm -rf ~"', 'name = '),
    ('bucket = "bucket"', "bucket = 'bucket': gs://BUCKET/FOLDER"),
    ('bucket = "gs://b$(id)"', 'bucket = '),
    ('config = "../../etc/x.py"', 'config = '),
    ('init = "$(id)"', 'init = '),
    ('init = "-x y"', 'init = '),
    ('set = ["steps"]', "set has 'steps': write each as 'a.b=value'"),
    ('set = ["train.steps=1\\n2"]', 'set has '),
    ('set = "train.steps=1"', 'set must be a list of strings'),
    ('data = ["gsm8k", "math"]', "data has 'math', which cannot be downloaded: its text was withdrawn in 2025"),
    ('data = ["gsm9k"]', "data has 'gsm9k': known are gsm8k"),
    ('provisioning = "preemptible"', "provisioning = 'preemptible': it must be one of spot, on-demand, reserved"),
    ('max_cost = 5', 'max_cost needs price_per_chip_hour'),
    ('max_tries = 0', 'max_tries = 0: it must be at least 1'),
    ('price_per_chip_hour = -1', 'price_per_chip_hour = -1.0: it must be at least 0'),
    ('price_per_chip_hour = nan', 'price_per_chip_hour = nan: it must be at least 0'),
    ('max_run = "5h"', "max_run is for provisioning = 'flex-start'"),
    ('provisioning = "flex-start"', 'needs max_run, of 7d at most'),
    ('provisioning = "flex-start"\nmax_run = "8d"', 'needs max_run, of 7d at most'),
    ('provisioning = "flex-start"\nmax_run = "8h"\nslice = "2xv5p-32"', 'gives one slice'),
    ('provisioning = "flex-start"\nmax_run = "8h"\nslice = "v4-32"', 'is for v5e, v5p and v6e'),
    ('provisioning = "flex-start"\nmax_run = "8h"\nqueue = false', 'flex-start needs a queued resource: queue = true'),
    ('max_run = "0h"', "max_run = '0h': a time, such as 10h is expected"),
    ('wait = "0s"', "wait = '0s': a time, such as 6h is expected"),
    ('runtime_version = "v2-alpha-tpuv6e"', 'is for v6e, and slice v5p-32 is v5p: leave it out'),
    ('queue = false\nwait = "6h"', 'wait needs a queued resource: queue = true'),
    ('queue = false\nslice = "2xv6e-16"', 'a multislice needs a queued resource: queue = true'),
    ('subnetwork = "s"', 'subnetwork needs the network'),
    ('reservation = "mine"', "reservation is for provisioning = 'reserved'"),
    ('provisioning = "reserved"\nreservation = "a/b"', "reservation = 'a/b': the name of a reservation, or projects/"),
    (
      'provisioning = "reserved"\nreservation = "projects/p/locations/us-east5-b/reservations/r"',
      "reservation is in us-east5-b, and the slice is not: zone = 'us-east5-b'",
    ),
    ('data_disks = ["mine"]', "data_disks has 'mine': write each as 'source=projects/PROJECT/zones/ZONE/disks/NAME"),
    (f'data_disks = ["{DISK},x=y"]', 'data_disks has '),
    (
      f'data_disks = ["{DISK.replace("read-only", "read-write")}"]',
      'v5p-32 has several hosts, which need mode=read-only',
    ),
    (f'data_disks = ["{DISK}"]\nzone = "us-east5-b"', "and the slice may be elsewhere: zone = 'us-east5-a'"),
    ('init = "Qwen/Qwen-7B@"', 'perhaps with @REVISION'),
    ('init = "Qwen/Qwen-7B@a b"', 'perhaps with @REVISION'),
    ('name = ', 'Invalid value'),
    ('name = "data"', 'BUCKET/data is for all jobs'),
    ('grace = "soon"', "grace = 'soon': a time, such as 30m is expected"),
    ('data = ["mine.xlsx"]', 'or name a file of yours, such as mine.jsonl'),
    ('env = ["A=1"]', 'env must be a table of strings, such as {NAME = "value"}'),
    ('env = {A = 1}', 'env must be a table of strings'),
    ('env = {"A-B" = "1"}', "env has 'A-B': it must be a name of letters, digits and _"),
    ('env = {A = "1\\n2"}', 'write it in one line'),
    ('env = {MATHQWEN_REHEARSAL = "1"}', 'not one of the launcher'),
    ('env = {TPU_WORKER_ID = "1"}', 'not one of the launcher'),
    ('env = {HF_TOKEN = "hf_abc"}', 'env has HF_TOKEN, which would be in files and logs: use secrets = {HF_TOKEN = '),
    ('env = {my_api_key = "abc"}', 'use secrets'),
    ('secrets = {HF_TOKEN = "hf_x/y"}', 'secrets has HF_TOKEN = something that is not the name of a secret'),
    ('secrets = {HF_TOKEN = "token/versions/0"}', 'write "hf-token" or "hf-token/versions/3"'),
    ('secrets = {"a b" = "token"}', "secrets has 'a b'"),
    ('secrets = {A = "t"}\nenv = {A = "1"}', 'A is in env and in secrets'),
  ],
)
def test_refused(job_file, line, message):
  path = job_file(*line.split('\n'))
  with pytest.raises(UserError) as error:
    job.read(path)
  assert str(error.value).startswith(f'{path}: ') and message in str(error.value) and '\n' not in str(error.value)


def test_missing_fields_and_files(tmp_path):
  (tmp_path / 'empty.toml').write_text('name = "a"\n')
  with pytest.raises(UserError, match='slice, zone, bucket, config must be given'):
    job.read(str(tmp_path / 'empty.toml'))
  with pytest.raises(UserError, match='there is no job file'):
    job.read(str(tmp_path / 'none.toml'))


@pytest.mark.parametrize('init', ['Qwen/Qwen-7B@v1.0', 'hf://Qwen/Qwen-7B@refs/pr/3', 'gs://b/model', '/models/x', ''])
def test_where_training_starts(init, job_file):
  assert (f'--init={init}' in job.read(job_file(f'init = "{init}"')).train()) == bool(init)


@pytest.mark.parametrize('lines, inside', [
  ([], []),
  (['internal_ips = true'], ['--internal-ip']),
  (['iap = true'], ['--tunnel-through-iap']),
  (['iap = true', 'internal_ips = true'], ['--tunnel-through-iap']),
])  # fmt: skip
def test_ways_to_the_hosts(lines, inside, job_file):
  found = job.read(job_file(*lines))
  for line in (commands.ssh(found, 'n', 'x'), commands.copy(found, 'n', 'f')):
    assert [flag for flag in line if flag in ('--internal-ip', '--tunnel-through-iap')] == inside
    assert ('alpha' in line) == ('iap = true' in lines)


FULL = 'projects/other/locations/us-east5-a/reservations/mine'


@pytest.mark.parametrize('queue', ['true', 'false'])
@pytest.mark.parametrize('reservation', ['', 'mine', FULL])
def test_what_the_api_is_asked(fake_cloud, job_file, reservation, queue):
  """Through the real gcloud where it is installed: a reservation by its name and a disk reach the request."""
  lines = ['provisioning = "reserved"', f'reservation = "{reservation}"', f'queue = {queue}']
  cloud.Cloud(job.read(job_file(*lines, f'data_disks = ["{DISK}"]'))).create()
  if not fake_cloud.real:
    return  # the stub refused what gcloud would refuse
  ((body,),) = [[body for method, _, body in fake_cloud.requests if method == 'POST']]
  node = body['tpu']['nodeSpec'][0]['node'] if queue == 'true' else body
  assert node['dataDisks'] == [{'sourceDisk': 'projects/p/zones/us-east5-a/disks/d', 'mode': 'READ_ONLY'}]
  project = 'secret-project-7' if queue == 'true' else '123456789'
  full = {'': None, 'mine': f'projects/{project}/locations/us-east5-a/reservations/mine', FULL: FULL}[reservation]
  if queue == 'true':
    any_of_the_zone = 'projects/secret-project-7/locations/us-east5-a/reservations/-'
    assert body['reservationName'] == (full or any_of_the_zone)
  else:
    assert node['schedulingConfig']['reserved'] and node['schedulingConfig'].get('reservationName') == full


def test_the_real_gcloud_knows_the_way_through_iap(fake_cloud, job_file):
  if not fake_cloud.real:
    pytest.skip('the stub does not print the line of ssh')
  found = cloud.Cloud(job.read(job_file('iap = true', 'internal_ips = true')))
  found.create()
  while found.state() != 'ready':
    pass
  printed = found.run([*commands.ssh(found.job, 'math-7b', 'true'), '--dry-run'])
  assert printed.count('start-iap-tunnel') == 4


def test_several_zones(job_file):
  """The first one is where the slice is requested first; the other commands follow the zone at hand."""
  path = pathlib.Path(job_file('zones = ["us-east5-a", "us-south1-ai1b"]'))
  path.write_text(path.read_text().replace('zone = "us-east5-a"\n', ''))
  found = job.read(str(path))
  assert (found.zone, found.all_zones) == ('us-east5-a', ('us-east5-a', 'us-south1-ai1b'))
  there = found.in_zone('us-south1-ai1b')
  assert there.all_zones == found.all_zones
  for line in commands.lines(there, 'up'):
    assert '--zone=us-south1-ai1b' in line or line[0] == 'git'
  assert job.read(job_file()).all_zones == ('us-east5-a',)


def test_a_misspelt_flag_gives_one_line(job_file, launch):
  status, _, message = launch('up', job_file(), '--dryrun')
  assert (status, message) == (2, 'launch: unrecognized arguments: --dryrun (see python -m launch.tpu --help)\n')


def test_tpu7x_has_only_recipes(job_file, launch):
  status, _, message = launch('up', job_file('slice = "tpu7x-16"'), '--dry-run')
  assert status == 2 and message.startswith(
    "launch: slice = 'tpu7x-16': tpu7x is not in the Cloud TPU API; recipe --to gke"
  )
  assert launch('recipe', job_file('slice = "tpu7x-16"'), '--to', 'gke')[0] == 0


def test_a_shell_runs_nothing_in_a_job_file(job_file, tmp_path):
  """A real shell gets the command of a host, with a worker.sh that prints its arguments."""
  hostile = ['data.system_prompt=$(touch pwned) `touch pwned` ; touch pwned & \'" | touch pwned', 'data.data_dir=--x *']
  found = dataclasses.replace(job.read(job_file()), set=tuple(hostile))
  (tmp_path / 'mathqwen' / 'launch' / 'tpu').mkdir(parents=True)
  (tmp_path / 'mathqwen' / 'launch' / 'tpu' / 'worker.sh').write_text('printf "%s\\n" "$@"\n')
  for line in commands.lines(found, 'start'):
    (command,) = [word.partition('=')[2] for word in line if word.startswith('--command=')]
    # gcloud splits the command at spaces, and ssh joins the parts with spaces for the shell of the host.
    done = subprocess.run(['bash', '-c', ' '.join(command.split(' '))], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines() == ['start', 'math-7b/1', *facts.train(found)] and not done.stderr
  assert not (tmp_path / 'pwned').exists()
  assert [f'--set={text}' for text in hostile] == facts.train(found)[-2:]


def test_a_dry_run_into_a_closed_pipe(job_file):
  read, write = os.pipe()
  os.close(read)
  found = subprocess.run(
    [sys.executable, '-m', 'launch.tpu', 'up', job_file(), '--dry-run'],
    cwd=EXAMPLE.parents[2], stdout=write, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip
  os.close(write)
  assert (found.returncode, found.stderr) == (0, '')


def test_the_launcher_needs_no_jax(job_file):
  """Importing it takes seconds, and the machine that starts a job may not have it."""
  code = (
    'import sys; from launch.tpu.__main__ import main; main(sys.argv[1:]); '
    'print([m for m in ("jax", "flax", "numpy", "grain", "huggingface_hub") if m in sys.modules])'
  )
  words = [sys.executable, '-c', code, 'up', job_file(), '--dry-run']
  found = subprocess.run(words, cwd=EXAMPLE.parents[2], capture_output=True, text=True, check=True)
  assert found.stdout.splitlines()[-1] == '[]'


def test_dry_run_prints_every_command(job_file, launch):
  status, printed, _ = launch('up', job_file('slice = "2xv5p-32"', 'data = ["gsm8k"]'), '--dry-run')
  assert status == 0
  lines = [shlex.split(line) for line in printed.splitlines()]
  expected = commands.lines(job.read(job_file('slice = "2xv5p-32"', 'data = ["gsm8k"]')), 'up')
  assert lines == expected
  verbs = [
    [word for word in line if word in ('create', 'describe', 'archive', 'scp', 'ssh', 'delete')][0] for line in lines
  ]
  one_slice = ['describe'] * 3 + ['archive'] + ['scp', 'ssh'] * 2 + ['ssh'] * 4
  assert verbs == ['create', *one_slice, 'delete']
  assert all('--worker=all' in line for line in lines if 'ssh' in line or 'scp' in line)
  assert not any(word.startswith('--project') for line in lines for word in line)
