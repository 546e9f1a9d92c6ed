#!/usr/bin/env bash
# demo.sh [ARGUMENT ...]: installs mathqwen in .venv and runs `mathqwen demo` with the arguments.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
bash "$here/install.sh"
cd "$here/../.."
exec "${VENV:-.venv}/bin/mathqwen" demo "$@"
