#!/usr/bin/env bash
# CE if it has no checkpoint yet, GRPO, evaluation of both, table: bash scripts/run_grpo.sh [--config configs/demo/grpo.yaml] [key=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
exec "$PYTHON" -m src.commands.pipeline grpo "$@"
