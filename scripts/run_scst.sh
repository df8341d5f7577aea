#!/usr/bin/env bash
# CE if it has no checkpoint yet, SCST, evaluation of both, table: bash scripts/run_scst.sh [--config configs/demo/scst.yaml] [key=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
exec "$PYTHON" -m src.commands.pipeline scst "$@"
