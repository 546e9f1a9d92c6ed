#!/usr/bin/env bash
# install.sh [EXTRA]: makes .venv in the checkout and installs mathqwen[EXTRA] there. Needs Python 3.11 to 3.13 (or
# PYTHON=/path/to/python). Used by demo.sh and test.sh; does nothing when the same install is already there.
# VENV=DIR: another place than .venv. CONSTRAINTS=FILE: for pip, such as tests/constraints/colab.txt.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
extra="${1:-}"
venv="${VENV:-.venv}"

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3.12 python3.11 python3.13 python3 python; do
    if command -v "$candidate" >/dev/null &&
      "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
    if [[ "$candidate" == "${PYTHON:-}" ]]; then
      echo "install.sh: PYTHON=$PYTHON is no Python 3.11 to 3.13 with venv" >&2
      return 2
    fi
  done
  echo "install.sh: no Python 3.11 to 3.13 with venv; install one, or set PYTHON=/path/to/python" >&2
  return 2
}

sources=(setup.py mathqwen/__init__.py)
pip=(-m pip install --quiet --disable-pip-version-check)
if [[ -n "${CONSTRAINTS:-}" ]]; then
  sources+=("$CONSTRAINTS")
  pip+=(--constraint "$CONSTRAINTS")
fi
stamp="$venv/.installed-$(cat "${sources[@]}" | cksum | tr ' ' '-')-${extra:-base}"
if [[ ! -e "$stamp" ]]; then
  if [[ ! -x "$venv/bin/python" ]]; then
    python="$(find_python)"
    echo "making $venv with $("$python" --version)" >&2
    "$python" -m venv "$venv"
  fi
  echo "installing mathqwen${extra:+[$extra]} and what it needs (a minute or two)" >&2
  "$venv/bin/python" "${pip[@]}" --editable ".${extra:+[$extra]}"
  touch "$stamp"
fi
