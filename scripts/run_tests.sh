#!/usr/bin/env bash
# The tests, without the slow ones: bash scripts/run_tests.sh [pytest arguments]; the slow ones: -m slow; all: -m ""
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
exec "$PYTHON" -m pytest "$@"
