#!/usr/bin/env bash
# Measure the speed of each phase of training on this machine: bash scripts/run_bench.sh [images=8 group=5 vocab=30522 length=20 layers=1 width=512 encoder=resnet50 trainable=true ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
exec "$PYTHON" -m src.bench "$@"
