#!/usr/bin/env bash
# measure.sh [PART ...]: installs mathqwen[dev] in .venv, measures this machine, and writes the table of tests/README.md.
# `measure.sh --list` shows the parts. Let nothing else run meanwhile.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
bash "$here/install.sh" dev
cd "$here/../.."
exec "${VENV:-.venv}/bin/python" tests/measure.py "$@"
