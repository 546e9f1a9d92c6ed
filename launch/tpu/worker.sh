#!/usr/bin/env bash
# worker.sh VERB ...: what the launcher does on each host of a slice, in the checkout that it has copied there.
#
#   setup [DATA_SET ...]      installs Python and the package, and prepares data sets
#   start RUN COMMAND ...     starts the command in the background, safe from a lost connection; once for each RUN
#   follow RUN                prints its output, with this host's number before each line, and then its exit status
#   status RUN                prints none, running, or the exit status
#   stop RUN                  sends SIGTERM: training saves and ends with 75
#   log RUN                   prints its whole output
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
runs="$HOME/mathqwen-runs"

# Prints the number of this host in its slice. Slurm's variable is for rehearsals on machines that are not TPU VMs.
number() {
  local metadata=http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number
  if [[ -n "${SLURM_PROCID:-}" ]]; then
    echo "$SLURM_PROCID"
  else
    curl -sf -m 5 -H 'Metadata-Flavor: Google' "$metadata" || hostname | sed "s/.*-w-//"
  fi
}

setup() {
  cd "$here"
  # JAX recommends this on v5e and later: transfers to the chips are faster.
  echo always | sudo tee /sys/kernel/mm/transparent_hugepage/enabled >/dev/null
  export PATH="$HOME/.local/bin:$PATH"
  command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
  [[ -x .venv/bin/python ]] || uv venv --quiet --python 3.12 .venv # the images have Python 3.10
  uv pip install --quiet --python .venv/bin/python -e '.[tpu,hf,gcs]'
  if (($#)); then
    .venv/bin/mathqwen data prepare "$@"
  fi
  echo "host $(number) is ready: $(.venv/bin/python --version)"
}

start() {
  local run="$runs/$1" older
  shift
  # Never two at the same time: an earlier start that still runs has to save and end first.
  for older in "$(dirname "$run")"/*/pid; do
    if [[ -e "$older" && "$older" != "$run/pid" ]] && kill -TERM "$(cat "$older")" 2>/dev/null; then
      timeout 240 tail -f /dev/null --pid="$(cat "$older")" || kill -KILL "$(cat "$older")" 2>/dev/null || true
    fi
  done
  if ! mkdir -p "$(dirname "$run")" || ! mkdir "$run" 2>/dev/null; then
    echo "host $(number): goes on"
    return
  fi
  cd "$here"
  PATH="$here/.venv/bin:$PATH" setsid nohup bash launch/tpu/worker.sh watch "$run" "$@" >"$run/log" 2>&1 </dev/null &
  echo "host $(number): started"
}

watch() { # the parent of the command: writes down how it ends
  local run="$1" status=0
  shift
  trap : TERM # a host that shuts down sends it to every process; the command saves first, and this waits for it
  # shellcheck disable=SC2016 # the inner shell expands it
  bash -c 'echo $$ >"$0/pid"; exec "$@"' "$run" "$@" || status=$?
  echo "$status" >"$run/status.part"
  mv "$run/status.part" "$run/status"
}

state() {
  local run="$runs/$1"
  if [[ -e "$run/status" ]]; then
    cat "$run/status"
  elif [[ -e "$run" ]]; then
    echo running
  else
    echo none
  fi
}

follow() {
  local run="$runs/$1" me status=137 # unless written: the command was killed together with its watcher
  me="$(number)"
  for _ in {1..100}; do
    [[ -e "$run/pid" ]] && break
    sleep 0.1
  done
  tail -n +1 -f --pid="$(cat "$run/pid")" "$run/log" | sed -u "s/^/[$me] /"
  for _ in {1..30}; do
    [[ -e "$run/status" ]] && status="$(cat "$run/status")" && break
    sleep 0.1
  done
  printf '\n[%s]= %s\n' "$me" "$status" # the last line of the log may not end with a newline
  exit "$status"
}

stop() {
  local run="$runs/$1"
  if [[ "$(state "$1")" == running && -e "$run/pid" ]]; then
    kill -TERM "$(cat "$run/pid")"
  fi
  echo "host $(number): $(state "$1")"
}

verb="${1:?setup, start, follow, status, stop or log}"
shift
case "$verb" in
  setup | start | watch | follow | stop) "$verb" "$@" ;;
  status) state "$1" ;;
  log) cat "$runs/$1/log" ;;
  *)
    echo "worker.sh: no verb $verb" >&2
    exit 2
    ;;
esac
