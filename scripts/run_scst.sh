#!/usr/bin/env bash
# Train CE unless it is complete, then SCST; evaluate both and print the table: bash scripts/run_scst.sh [--config configs/demo/scst.yaml] [key=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
exec "$PYTHON" -m src.commands.pipeline scst "$@"
