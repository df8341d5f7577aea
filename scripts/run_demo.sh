#!/usr/bin/env bash
# Serve a web page that captions photographs: bash scripts/run_demo.sh --checkpoint [NAME=]PATH... [--config configs/demo/grpo.yaml] [key=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
require_more "$ROOT/scripts/demo_requirements.txt"
exec "$PYTHON" -m src.captioning.serve "$@"
