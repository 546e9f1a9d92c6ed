"""A stand-in for gcloud: the commands and flags that `launch.tpu` uses, on the fake API.

Where gcloud is installed, a test compares FLAGS with gcloud's own, so a flag that gcloud does not know is refused here
too. Like gcloud, it reaches hosts through `ssh` and `scp` on PATH.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request

CREATE = {
  '--zone', '--accelerator-type', '--labels', '--spot', '--reserved', '--network', '--subnetwork', '--internal-ips',
  '--service-account', '--data-disk',
}  # fmt: skip
QUEUED = {'--node-id', '--node-count', '--node-prefix', '--runtime-version', '--valid-until-duration'}
FLAGS = {
  'compute tpus queued-resources create': CREATE | QUEUED,
  'alpha compute tpus queued-resources create': CREATE
  | QUEUED
  | {'--provisioning-model', '--max-run-duration', '--reservation'},
  'compute tpus queued-resources describe': {'--zone', '--format'},
  'compute tpus queued-resources delete': {'--zone', '--force', '--quiet', '--async'},
  'compute tpus tpu-vm create': CREATE | {'--version'},
  'compute tpus tpu-vm describe': {'--zone', '--format'},
  'compute tpus tpu-vm delete': {'--zone', '--quiet', '--async'},
  'compute tpus tpu-vm ssh': {'--zone', '--worker', '--command', '--internal-ip', '--output-directory'},
  'compute tpus tpu-vm scp': {'--zone', '--worker', '--internal-ip'},
  'alpha compute tpus tpu-vm create': CREATE | {'--version', '--reservation'},
  'alpha compute tpus tpu-vm ssh': {'--zone', '--worker', '--command', '--tunnel-through-iap', '--output-directory'},
  'alpha compute tpus tpu-vm scp': {'--zone', '--worker', '--tunnel-through-iap'},
  'storage cat': set(),
  'storage cp': set(),
  'storage rm': {'--recursive'},
  'secrets versions access': {'--secret'},
  'projects describe': {'--format'},
  'projects get-iam-policy': {'--format'},
}


def main(words) -> int:
  if words[:3] == ['storage', 'buckets', 'describe']:
    found = ask('GET', f'b/{words[3].removeprefix("gs://")}', base='storage/v1/')
    placed = found.get('customPlacementConfig', {}).get('dataLocations')
    print(json.dumps({'location': found['location'], 'data_locations': placed}))
    return 0
  if words == ['config', 'get-value', 'project']:
    print(os.environ['FAKE_PROJECT'])
    return 0
  command = next(name for name in FLAGS if words[: len(name.split())] == name.split())
  *group, verb = command.split()
  words = words[len(group) + 1 :]
  flags = dict(word.partition('=')[::2] for word in words if word.startswith('--'))
  names = [word for word in words if not word.startswith('--')]
  for flag in flags:
    if flag not in FLAGS[command]:
      print(f'ERROR: (gcloud) unrecognized arguments: {flag}', file=sys.stderr)
      return 2
  if group[0] in ELSEWHERE:
    return ELSEWHERE[group[0]](verb, flags, names)
  kind = 'queuedResources' if 'queued-resources' in command else 'nodes'
  place = f'projects/{os.environ["FAKE_PROJECT"]}/locations/{flags["--zone"]}'
  if verb == 'create' and kind == 'nodes':
    ask('POST', f'{place}/nodes?nodeId={names[0]}', node(flags, flags['--version']))
  elif verb == 'create':
    ask('POST', f'{place}/{kind}?queuedResourceId={names[0]}', queued(place, flags))
  elif verb == 'describe':
    found = ask('GET', f'{place}/{kind}/{names[0]}')
    if flags['--format'].startswith('json'):
      print(json.dumps({'state': found['state']}))
      return 0
    print(found['state']['state'] if kind == 'queuedResources' else found['state'])
  elif verb == 'delete':
    ask('DELETE', f'{place}/{kind}/{names[0]}?force={"true" if "--force" in flags else "false"}')
  else:
    name = names[-1].partition(':')[0]
    found = ask('GET', f'{place}/nodes/{name}')
    if found['state'] != 'READY':
      print(f'ERROR: (gcloud) the TPU is in an unusable state: {found["state"]}', file=sys.stderr)
      return 1
    return on_hosts(verb, found['networkEndpoints'], flags, names)
  return 0


def node(flags, runtime):
  body = {'acceleratorType': flags['--accelerator-type'], 'runtimeVersion': runtime}
  return body | ({'schedulingConfig': {'spot': True}} if '--spot' in flags else {})


def queued(place, flags):
  spec = {'parent': place, 'node': node(flags, flags['--runtime-version'])}
  if '--node-id' in flags:
    spec |= {'nodeId': flags['--node-id']}
  else:
    several = {'nodeCount': int(flags['--node-count']), 'nodeIdPrefix': flags['--node-prefix']}
    spec |= {'multisliceParams': several}
  return {'tpu': {'nodeSpec': [spec]}} | ({'spot': {}} if '--spot' in flags else {})


def ask(method, path, body=None, base='v2/'):
  data = None if body is None else json.dumps(body).encode()
  request = urllib.request.Request(f'{os.environ["FAKE_API"]}{base}{path}', data, method=method)
  try:
    return json.loads(urllib.request.urlopen(request).read())
  except urllib.error.HTTPError as error:
    answer = json.loads(error.read())['error']
    print(f'ERROR: (gcloud) HTTPError {error.code}: {answer["status"]}: {answer["message"]}', file=sys.stderr)
    sys.exit(1)


def on_hosts(verb, endpoints, flags, names) -> int:
  statuses = [0] * len(endpoints)

  def run(i, endpoint):
    address = f'user@{endpoint["accessConfig"]["externalIp"]}'
    line = ['ssh', address, '--', flags['--command']] if verb == 'ssh' else None
    line = line or ['scp', names[0], f'{address}:{names[1].partition(":")[2]}']
    folder = flags.get('--output-directory')
    output = open(os.path.join(folder, f'{i}.log'), 'w') if folder else None  # noqa: SIM115 - the process uses it
    statuses[i] = subprocess.run(line, stdout=output).returncode
    if statuses[i]:
      print(
        f'##### Command execution on worker {i} failed with exit status {statuses[i]}. Continuing.', file=sys.stderr
      )

  threads = [threading.Thread(target=run, args=pair) for pair in enumerate(endpoints)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return next((status for status in statuses if status), 0)


def storage(verb, flags, names) -> int:
  """Buckets are folders."""
  folder = pathlib.Path(os.environ['FAKE_FOLDER'], 'buckets')
  local = [folder / name.removeprefix('gs://') if name.startswith('gs://') else pathlib.Path(name) for name in names]
  if not local[0].exists():
    words = f'The following URLs matched no objects or files:\n{names[0]}'
    print(f'ERROR: (gcloud.storage.{verb}) {words}', file=sys.stderr)
    return 1
  if verb == 'cat':
    sys.stdout.write(local[0].read_text())
  elif verb == 'rm':
    shutil.rmtree(local[0]) if local[0].is_dir() else local[0].unlink()
  else:
    local[1].parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(local[0], local[1])
  return 0


def secrets(verb, flags, names) -> int:
  """FAKE_FOLDER/secrets/NAME/VERSION holds a value."""
  file = pathlib.Path(os.environ['FAKE_FOLDER'], 'secrets', flags['--secret'], names[0])
  if not file.exists():
    words = f"Permission 'secretmanager.versions.access' denied for resource '{flags['--secret']}'"
    print(f'ERROR: (gcloud.secrets.versions.access) PERMISSION_DENIED: {words} (or it may not exist).', file=sys.stderr)
    return 1
  sys.stdout.write(file.read_text())
  return 0


def projects(verb, flags, names) -> int:
  if verb == 'describe':
    print('123456789')
  else:
    print(json.dumps(ask('POST', f'v1/projects/{names[0]}:getIamPolicy', {}, base='')))
  return 0


ELSEWHERE = {'storage': storage, 'secrets': secrets, 'projects': projects}

if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
