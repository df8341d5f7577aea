#!/usr/bin/env bash
# Train with cross-entropy, then evaluate: bash scripts/run_ce.sh [--config configs/demo/ce.yaml] [key=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
exec "$PYTHON" -m src.commands.pipeline ce "$@"
