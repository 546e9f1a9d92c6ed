#!/usr/bin/env bash
# worker.sh VERB ...: what the launcher does on each host of a slice, in the checkout that it has copied there.
#
#   setup [DATA_SET ...]      installs Python and the package, and prepares data sets
#   start RUN COMMAND ...     starts the command in the background, safe from a lost connection; once for each RUN
#   follow RUN                prints its output, with this host's number before each line, and then its exit status
#   status RUN                prints none, running, or the exit status
#   stop RUN                  sends SIGTERM: training saves and ends with 75
#   log RUN                   prints its whole output
#
# MATHQWEN_JOB: JSON about the job (launch/tpu/facts.py). With it, `setup` and `start` start a guard (launch/tpu/host.py),
# which enforces the deadline and removes the slice when nothing runs and no launcher comes; and `setup` installs the
# versions of the job's first start, and stages data sets and model in the bucket (launch/tpu/stage.py).
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
runs="$HOME/mathqwen-runs"
export PATH="$HOME/.local/bin:$PATH:/snap/bin" # uv, and gcloud on the images of TPU VMs

# Prints the number of this host in its slice. Slurm's variable is for rehearsals on machines that are not TPU VMs.
number() {
  local server="${GCE_METADATA_HOST:-metadata.google.internal}"
  if [[ -n "${SLURM_PROCID:-}" ]]; then
    echo "$SLURM_PROCID"
  else
    curl -sf -m 5 -H 'Metadata-Flavor: Google' "http://$server/computeMetadata/v1/instance/attributes/agent-worker-number" ||
      hostname | sed "s/.*-w-//"
  fi
}

# Notes that a launcher was here, and stores what it sent about the job, if anything. Returns whether it did.
take_facts() {
  mkdir -p "$runs"
  touch "$runs/heard"
  [[ -n "${MATHQWEN_JOB:-}" ]] || return
  printf '%s' "$MATHQWEN_JOB" >"$runs/facts.json.part"
  mv "$runs/facts.json.part" "$runs/facts.json"
}

# Starts the guard, unless it is at work.
guard() {
  cd "$here"
  flock --nonblock "$runs/guard.lock" true || return 0 # a guard holds it
  setsid nohup python3 -m launch.tpu.host guard "$(number)" >>"$runs/guard.log" 2>&1 </dev/null &
  if ! command -v gcloud >/dev/null; then
    echo 'worker.sh: note: this host has no gcloud: it can neither remove the slice at the end nor write to gs://' |
      tee -a "$runs/guard.log"
  fi
}

setup() {
  local has_facts=0
  take_facts && has_facts=1
  cd "$here"
  if ((has_facts)); then
    echo $$ >"$runs/setup.pid" # the guard does not remove a slice that is being set up
    trap 'rm -f "$runs/setup.pid"; touch "$runs/heard"' EXIT
    if ! flock --nonblock "$runs/guard.lock" true; then # the guard of an earlier checkout
      kill "$(cat "$runs/guard.pid")" || true
      flock --timeout 5 "$runs/guard.lock" true || true
    fi
    guard
  fi
  # JAX recommends this on v5e and later: transfers to the chips are faster.
  echo always | sudo tee /sys/kernel/mm/transparent_hugepage/enabled >/dev/null
  command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
  [[ -x .venv/bin/python ]] || uv venv --quiet --python 3.12 .venv # the images have Python 3.10
  if ((has_facts)); then
    # The versions of the first start, so that nothing changes under a job that runs for weeks.
    python3 -m launch.tpu.stage lock "$runs/facts.json" "$(number)" "$runs/requirements.txt"
    uv pip install --quiet --python .venv/bin/python --requirements "$runs/requirements.txt"
    uv pip install --quiet --python .venv/bin/python --no-deps -e .
    if [[ "$(number)" == 0 ]]; then
      python3 -m launch.tpu.stage all "$runs/facts.json" 0
    fi
  else
    uv pip install --quiet --python .venv/bin/python -e '.[tpu,hf,gcs]'
  fi
  if (($#)); then
    .venv/bin/mathqwen data prepare "$@"
  fi
  echo "host $(number) is ready: $(.venv/bin/python --version)"
}

start() {
  local run="$runs/$1" older has_facts=0
  shift
  take_facts && has_facts=1
  ((!has_facts)) || guard
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
  ((!has_facts)) || cp "$runs/facts.json" "$run/facts.json"
  cd "$here"
  PATH="$here/.venv/bin:$PATH" setsid nohup python3 -m launch.tpu.host watch "$run" "$@" >"$run/log" 2>&1 </dev/null &
  echo $! >"$run/watcher"
  echo "host $(number): started"
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
  tail -n +1 -f --pid="$(cat "$run/watcher")" "$run/log" | sed -u "s/^/[$me] /"
  for _ in {1..30}; do
    [[ -e "$run/status" ]] && status="$(cat "$run/status")" && break
    sleep 0.1
  done
  printf '\n[%s]= %s\n' "$me" "$status" # the last line of the log may not end with a newline
  exit "$status"
}

stop() {
  local run="$runs/$1"
  take_facts || true
  if [[ "$(state "$1")" == running ]]; then
    echo stop >"$run/why" # read by a watcher that has not started the command yet
    [[ ! -e "$run/pid" ]] || kill -TERM "$(cat "$run/pid")"
  fi
  echo "host $(number): $(state "$1")"
}

verb="${1:?setup, start, follow, status, stop or log}"
shift
case "$verb" in
  setup | start | follow | stop) "$verb" "$@" ;;
  status) state "$1" ;;
  log) cat "$runs/$1/log" ;;
  *)
    echo "worker.sh: no verb $verb" >&2
    exit 2
    ;;
esac
