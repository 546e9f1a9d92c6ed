#!/usr/bin/env bash
# test.sh [ARGUMENT ...]: installs mathqwen[dev] in .venv and runs the tests; arguments go to pytest.
# PYTHON, VENV and CONSTRAINTS as in install.sh, for the tests with other versions.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
bash "$here/install.sh" dev
cd "$here/../.."
"${VENV:-.venv}/bin/ruff" check .
"${VENV:-.venv}/bin/ruff" format --check .
exec "${VENV:-.venv}/bin/python" -m pytest "$@"
