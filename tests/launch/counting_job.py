"""A job whose training is a script that counts steps in the workdir, and what tests ask of it."""

import pathlib
import time

ROOT = pathlib.Path(__file__).parents[2]
# Takes ten steps and saves each; a new start repeats the newest two. It waits at the step whose number is in the file
# `hold` of the workdir, as long as that exists; with a file `fail`, host 1 ends with status 1.
COUNTS = """#!/usr/bin/env bash
if [[ "$1" != train ]]; then # data prepare, convert from-hf
  echo "$*" >>"$FAKE_FOLDER/staged"
  [[ "$1" != data ]] || (mkdir -p "$MATHQWEN_CACHE/downloads/$3" && echo rows >"$MATHQWEN_CACHE/downloads/$3/train")
  [[ "$1" != convert ]] || (mkdir -p "$4" && echo "weights ${HF_TOKEN:+with a token}" >"$4/weights")
  exit
fi
trap 'echo "stopped by SIGTERM" >&2; exit 75' TERM
workdir="$(sed -n 's/.*--workdir=\\([^ ]*\\).*/\\1/p' <<<"$*")"
mkdir -p "$workdir"
step="$(cat "$workdir/$SLURM_PROCID" 2>/dev/null || echo 0)"
step=$((step > 2 ? step - 2 : 0))
while ((step < 10)); do
  echo "train $step/10 loss 1.5" >&2
  sleep "${PAUSE:-0.2}"
  while [[ "$(cat "$workdir/hold" 2>/dev/null)" == "$step" ]]; do sleep 0.1; done
  step=$((step + 1))
  echo "$step" >"$workdir/$SLURM_PROCID"
  if [[ "$SLURM_PROCID" == 1 && "$step" == 9 && -e "$workdir/fail" ]]; then
    echo "a defect hf_0123456789abcdef" >&2
    exit 1
  fi
done
echo "train 10/10 loss 1.5" >&2
echo '{"step": 10, "loss": 1.5, "tokens": 10240}'
"""


def wait_for(what, seconds=100):
  deadline = time.monotonic() + seconds
  while not what():
    assert time.monotonic() < deadline
    time.sleep(0.1)


def log(book, start=1, host=0):
  file = book.folder / f'start-{start}' / f'math-7b.{host}.log'
  return file.read_text() if file.exists() else ''


def created(fake):
  return [body for method, path, body in fake.requests if method == 'POST' and 'queuedResourceId' in path]
