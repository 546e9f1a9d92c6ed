"""Cloud TPU for tests: its REST API on loopback, and hosts that are folders on this machine.

The real gcloud talks to it, with its own flags and bodies, or the stub beside this file. `ssh` and `scp` are stubs that
run a host's commands here with the host's folder as HOME. A host's processes have FAKE_HOST in their environment.
"""

import http.server
import json
import os
import pathlib
import re
import signal
import sys
import threading
import urllib.parse

RESOURCE = re.compile(r'/v2\w*/(projects/[^/]+/locations/[^/]+)/(nodes|queuedResources)(?:/([^/?:]+))?')
HERE = pathlib.Path(__file__).parent
ACCOUNT = '123456789-compute@developer.gserviceaccount.com'  # of the hosts, unless another one is given
QUEUE = ['WAITING_FOR_RESOURCES']  # the states that a request shows, one for each time it is described; then ACTIVE


class FakeCloud:
  """folder: holds the homes of the hosts, and the stubs. hosts: how many a slice has."""

  def __init__(self, folder: pathlib.Path, hosts: int = 4, queue=QUEUE):
    self.folder, self.hosts, self.queue = folder, hosts, list(queue)
    self.requests, self.nodes, self.queued, self.slices = [], {}, {}, 0
    self.refusals = []  # (status, body) that answer the next requests to create
    self.buckets = {}  # {name: what the API says about it, or a status such as 404}; others are in us-east5
    self.policy = [{'role': 'roles/tpu.admin', 'members': [f'serviceAccount:{ACCOUNT}']}]
    self.failures = []  # (code, message) with which the next queued requests fail
    self._server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), self._handler())
    self.address = f'http://127.0.0.1:{self._server.server_port}/'
    threading.Thread(target=self._server.serve_forever, daemon=True).start()
    self.bin = folder / 'bin'
    self.bin.mkdir(parents=True)
    for name, text in STUBS.items():
      (self.bin / name).write_text(text)
      (self.bin / name).chmod(0o755)
    # Hosts call python3 often. That of pyenv is a shell script, which takes longer than what it starts.
    (self.bin / 'python3').symlink_to(os.path.realpath(sys.executable))

  def environment(self, gcloud: bool) -> dict[str, str]:
    """The environment of the launcher, with the real gcloud or the stub."""
    if not gcloud:
      (self.bin / 'gcloud').write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {HERE / "stub_gcloud.py"} "$@"\n')
      (self.bin / 'gcloud').chmod(0o755)
    home = self.folder / 'launcher'
    configurations = home / 'gcloud' / 'configurations'
    configurations.mkdir(parents=True, exist_ok=True)
    (home / 'gcloud' / 'active_config').write_text('default')
    (configurations / 'config_default').write_text('[core]\nproject = secret-project-7\n')
    return {
      'PATH': f'{self.bin}:{os.environ["PATH"]}',
      'HOME': str(home),
      'FAKE_API': self.address,
      'FAKE_HOSTS': str(self.hosts),
      'FAKE_FOLDER': str(self.folder),
      'FAKE_PREFIX': sys.prefix,
      'FAKE_PROJECT': 'secret-project-7',
      'CLOUDSDK_CONFIG': str(home / 'gcloud'),
      'CLOUDSDK_AUTH_DISABLE_CREDENTIALS': 'true',
      'CLOUDSDK_CORE_DISABLE_PROMPTS': '1',
      'CLOUDSDK_CORE_DISABLE_USAGE_REPORTING': 'true',
      'CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK': 'true',
      'CLOUDSDK_CORE_CHECK_GCE_METADATA': 'false',
      'CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU': self.address,
      'CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDRESOURCEMANAGER': self.address,
      'CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE': f'{self.address}compute/v1/',
      'CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE': f'{self.address}storage/v1/',
    }

  def preempt(self, node: str, host: int, warn: bool = False):
    """One host goes down, at once or after SIGTERM, and the slice with it."""
    self.kill(node, host, signal.SIGTERM if warn else signal.SIGKILL)
    self.nodes[self._find(self.nodes, node)]['state'] = 'PREEMPTED'

  def kill(self, node: str, host: int, how=signal.SIGKILL):
    name = f'FAKE_HOST={self.folder}/{self.home(node, host)}\0'.encode()
    for process in pathlib.Path('/proc').glob('[0-9]*'):
      try:
        if name in process.joinpath('environ').read_bytes() + b'\0':
          os.kill(int(process.name), how)
      except OSError:
        continue  # it has ended, or belongs to another user

  def home(self, node: str, host: int) -> str:
    return f'homes/{self.nodes[self._find(self.nodes, node)]["slice"]}.{host}'

  def stop(self):
    for name in list(self.nodes):
      self._remove(name)
    self._server.shutdown()
    self._server.server_close()

  def _find(self, where, name):
    return next(key for key in where if key.endswith(f'/{name}'))

  def _add(self, key, body):
    self.slices += 1
    hosts = [
      {'ipAddress': f'10.0.{self.slices}.{1 + i}', 'accessConfig': {'externalIp': f'127.0.{self.slices}.{1 + i}'}}
      for i in range(self.hosts)
    ]
    facts = {'name': key, 'state': 'READY', 'health': 'HEALTHY', 'networkEndpoints': hosts, 'slice': self.slices}
    self.nodes[key] = body | facts
    for i in range(self.hosts):
      (self.folder / self.home(key.rpartition('/')[2], i)).mkdir(parents=True)

  def _remove(self, key):
    name = key.rpartition('/')[2]
    for i in range(self.hosts):
      self.kill(name, i)
    del self.nodes[key]

  def answer(self, method: str, path: str, body: dict):
    """(status, body) that answer a request."""
    path, _, query = path.partition('?')
    query = dict(urllib.parse.parse_qsl(query))
    if path.endswith(':getGuestAttributes'):
      item = {'namespace': 'hostkeys', 'key': 'ssh-rsa', 'value': 'AAAAB3NzaC1yc2EAAAADAQABAAAAgQC7'}
      names = [{'namespace': 'hostkeys', 'key': 'hostname', 'value': f't1v-w-{i}'} for i in range(self.hosts)]
      values = [{'queryPath': '', 'queryValue': {'items': [item, name]}} for name in names]
      return 200, {'guestAttributes': values}
    if path.startswith('/storage/v1/b/'):
      name = path.split('/')[4]
      found = self.buckets.get(name, {'location': 'US-EAST5', 'locationType': 'region'})
      return (200, {'name': name} | found) if isinstance(found, dict) else (found, _error(found, 'x', 'refused'))
    if path.endswith(':getIamPolicy'):
      return 200, {'version': 1, 'etag': 'eA==', 'bindings': self.policy}
    if path.startswith('/v1/projects/'):
      return 200, {'projectId': 'secret-project-7', 'projectNumber': '123456789', 'lifecycleState': 'ACTIVE'}
    if path.startswith('/compute/v1/projects/'):
      metadata = {'kind': 'compute#metadata', 'fingerprint': 'eA==', 'items': []}
      return 200, {'kind': 'compute#project', 'name': 'secret-project-7', 'commonInstanceMetadata': metadata}
    if '/operations/' in path:
      kind, node = 'type.googleapis.com/google.cloud.tpu.v2.Node', next(iter(self.nodes.values()), {})
      return 200, {'name': path.lstrip('/').split('/', 1)[1], 'done': True, 'response': node | {'@type': kind}}
    found = RESOURCE.search(path)
    if not found:
      return 404, _error(404, 'NOT_FOUND', path)
    parent, kind, name = found.groups()
    where = self.nodes if kind == 'nodes' else self.queued
    key = f'{parent}/{kind}/{name}'
    if method == 'POST':
      if self.refusals:
        return self.refusals.pop(0)
      return self._create(parent, kind, query.get('nodeId') or query['queuedResourceId'], body)
    if name is None:
      return 200, {kind: list(where.values())}
    if key not in where:
      return 404, _error(404, 'NOT_FOUND', f'Resource {key!r} was not found')
    if method == 'DELETE':
      if kind == 'queuedResources':
        if query.get('force', '').lower() != 'true':
          return 400, _error(400, 'FAILED_PRECONDITION', 'it has nodes')
        for node in [k for k, v in self.nodes.items() if v.get('queuedResource') == key]:
          self._remove(node)
        del self.queued[key]
      else:
        self._remove(key)
    elif method == 'PATCH':
      where[key].update(body)
    else:
      return 200, self._look(key) if kind == 'queuedResources' else where[key]
    return 200, {'name': f'{parent}/operations/op-{method.lower()}', 'done': True, 'response': {}}

  def _create(self, parent, kind, name, body):
    key = f'{parent}/{kind}/{name}'
    if kind == 'nodes':
      self._add(key, body)
    else:
      self.queued[key] = body | {'name': key, 'looks': 0}
    return 200, {'name': f'{parent}/operations/op-{name}', 'done': True, 'response': {}}

  def _look(self, key):
    queued = self.queued[key]
    nodes = [node for node in self.nodes.values() if node.get('queuedResource') == key]
    if any(node['state'] == 'PREEMPTED' for node in nodes):
      return queued | {'state': {'state': 'SUSPENDED'}}
    if 'failure' not in queued:
      queued['failure'] = self.failures.pop(0) if self.failures else None
    if queued['failure']:
      error = dict(zip(('code', 'message'), queued['failure'], strict=True))
      return queued | {'state': {'state': 'FAILED', 'stateInitiator': 'SERVICE', 'failedData': {'error': error}}}
    if queued['looks'] < len(self.queue):
      queued['looks'] += 1
      return queued | {'state': {'state': self.queue[queued['looks'] - 1]}}
    if not nodes:
      for spec in queued['tpu']['nodeSpec']:
        several = spec.get('multisliceParams') or spec.get('multiNodeParams')
        names = [spec.get('nodeId')]
        if several:
          names = [f'{several["nodeIdPrefix"]}-{i}' for i in range(several['nodeCount'])]
        for name in names:
          self._add(f'{key.partition("/queuedResources")[0]}/nodes/{name}', spec['node'] | {'queuedResource': key})
    return queued | {'state': {'state': 'ACTIVE'}}

  def _handler(cloud):
    class Handler(http.server.BaseHTTPRequestHandler):
      def log_message(self, *_):
        pass

      def _any(self):
        size = int(self.headers.get('Content-Length') or 0)
        body = json.loads(self.rfile.read(size) or b'{}') if size else {}
        cloud.requests.append((self.command, self.path, body))
        status, answer = cloud.answer(self.command, self.path, body)
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)

      do_GET = do_POST = do_PATCH = do_DELETE = _any

    return Handler


def _error(code, status, message):
  return {'error': {'code': code, 'status': status, 'message': message}}


_HOST = r"""
address() { # reads the words of the command line: sets slice, host and, for ssh, the command
  while (($#)); do
    if [[ "$1" =~ (^|@)127\.0\.([0-9]+)\.([0-9]+)(:.*)?$ ]]; then
      slice="${BASH_REMATCH[2]}" host="$((BASH_REMATCH[3] - 1))" rest="${BASH_REMATCH[4]#:}"
      shift
      [[ "${1:-}" == -- ]] && shift
      command="$*"
      return
    fi
    file="$1"
    shift
  done
  exit 255
}
address "$@"
home="$FAKE_FOLDER/homes/$slice.$host"
[[ -d "$home" ]] || exit 255
"""
STUBS = {
  'ssh': '#!/usr/bin/env bash'
  + _HOST
  + r"""
export FAKE_HOST="$home" HOME="$home" SLURM_JOB_ID="${FAKE_JOB:-1}" SLURM_STEP_NODELIST=localhost
export SLURM_NTASKS="$FAKE_HOSTS" SLURM_PROCID="$host" SLURM_LOCALID="$host" PYTHONNOUSERSITE=1
cd "$home" && exec bash -c "$command"
""",
  'scp': '#!/usr/bin/env bash' + _HOST + 'cp "$file" "$home/$rest"\n',
  'ssh-add': '#!/bin/sh\nexit 1\n',
  'sudo': '#!/bin/sh\ncat >/dev/null\n',
  'uv': r"""#!/usr/bin/env bash
echo "uv $*" >>"$HOME/uv.log"
if [[ "$1 $2" == "pip compile" ]]; then
  while [[ "$1" != --output-file ]]; do shift; done
  echo "jax==0.$RANDOM" >"$2"
fi
if [[ "$1" == venv ]]; then
  mkdir -p .venv/bin
  ln -s "$FAKE_PREFIX/bin/python" .venv/bin/python
  cp "${FAKE_MATHQWEN:-$FAKE_PREFIX/bin/mathqwen}" .venv/bin/mathqwen
fi
""",
}
