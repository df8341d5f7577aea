#!/usr/bin/env bash
# Train CE, SCST and GRPO over several seeds, and compare them: bash scripts/run_comparison.sh [--config configs/demo/comparison.yaml] [seeds=3] [key=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
exec "$PYTHON" -m src.commands.comparison "$@"
