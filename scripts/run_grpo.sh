#!/usr/bin/env bash
# Train CE unless it is complete, then GRPO; evaluate both and print the table: bash scripts/run_grpo.sh [--config configs/demo/grpo.yaml] [key=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
exec "$PYTHON" -m src.commands.pipeline grpo "$@"
