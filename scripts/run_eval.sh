#!/usr/bin/env bash
# Evaluate trained models: bash scripts/run_eval.sh [--config configs/demo/grpo.yaml] [key=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
exec "$PYTHON" -m src.commands.pipeline eval "$@"
