#!/usr/bin/env bash
# Pack the images of a dataset into MindRecord shards: bash scripts/prepare_mindrecord.sh --config FILE [--shards 4] [key=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
exec "$PYTHON" -m src.commands.prepare_mindrecord "$@"
